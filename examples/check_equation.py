"""A verifier: puts the answer into the job's equation, as in metadata {"equation": "x*7+13=62"}.

export MARCO_VERIFIERS='{"equation": ["python3", "examples/check_equation.py"]}'
marco submit jobs.jsonl --verifier equation
"""

import json
import re
import sys

given = json.load(sys.stdin)
left, right = given["metadata"]["equation"].replace("x", f"({given['answer']})").split("=")
for side in (left, right):
    if not re.fullmatch(r"[\d+\-*/(). ]+", side):
        sys.exit(f"not arithmetic: {side}")
same = abs(eval(left) - eval(right)) < 1e-9  # noqa: S307  # digits and signs only
print("accept" if same else "reject")
