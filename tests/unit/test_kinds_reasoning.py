"""Answers of reasoning jobs: where they are found and when two are the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.jobs import SYSTEM_PROMPTS
from marco_search.kinds import KINDS, ReasoningJob, kind_of
from marco_search.search.branches import Message

KIND = KINDS["reasoning"]


def key(output: str) -> str | None:
    found = KIND.read(output)
    return None if found is None else found.key


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        # what the shipped model writes
        ("The answer is 42 apples.", "42"), ("答案是42个苹果。", "42"),
        # markers
        ("So 3 + 4 = 7.\nThe final answer is: 7", "7"), ("Answer: $1,620.00", "1620"),
        ("18 * 2 = 36\n#### 36", "36"), ("答案：４２元", "42"), ("最终答案为三百二十一。", "321"),
        ("答：一共需要３５元。", "35"), ("The answer is x = 5.", "5"),
        ("The answer is 3 + 4 = 7.", "7"), ("The answer to the problem is **14**.", "14"),
        ("The answer is 7. The answer is 8.", "8"), ("The answer is twenty-one.", "21"),
        ("The correct answer is 7 apples and 3 pears.", "7"), ("the answer is 3/4 of it", "0.75"),
        # boxed
        (r"So $\boxed{42}$ it is, after 3 tries.", "42"), (r"\[\boxed{\frac{3}{4}}\]", "0.75"),
        (r"\boxed{1{,}234}", "1234"), (r"\boxed{x = 5}", "5"), (r"\boxed{12\text{ cm}^2}", "12"),
        (r"\boxed{25\%}", "25"), (r"\boxed{\text{yes}}", "yes"), (r"\boxed{B}", "B"),
        (r"\boxed{1} or rather \boxed{2}", "2"), (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{2\pi}", "2π"), (r"\boxed{3\sqrt{2}}", "3√2"), (r"\boxed{(2, -1)}", "(2,-1)"),
        # sentences
        ("这三个人的平均分是84分。", "84"), ("他们一共赢了30场比赛。", "30"),
        ("42（个）", "42"), ("Brenda needs to spay 7 cats.", "7"),
        ("3 meatballs are still left on their plates altogether.", "3"),
        ("Emmalyn earned a total of $5,000 from painting the fences.", "5000"),
        ("After 7 minutes, Jason will be 42 feet higher than Matt.", "42"),
        ("Tabitha can enjoy honey for 48 nights before the 16-ounce container runs out.", "48"),
        ("Each key should be 32 bits to ensure that all 128 bits are used across 4 rounds.", "32"),
        ("Adam will teach a total of 570 students in 10 years.", "570"),
        ("Ronald needs to roll a 2 on his next roll to achieve an average of 3.", "2"),
        ("They buy 4 (2 for each of the 2 children).", "4"), ("一共30元，因为每个5元。", "30"),
        ("2.5625 as a simplified fraction is 41/16.", "2.5625"), ("It costs 3.5万元", "35000"),
        ("3 + 4 = 7", "7"), ("10 - 3 = 7 apples", "7"), ("\\( k = 3 \\)", "3"),
        ("The value of \\( k \\) is **14**.", "14"),
        ("**10 days**, 2 of them free, for $241.", "10"),
        ("48\n\nThere are 2 steps in 3 lines.", "48"), ("25 percent", "25"), ("-3 °C", "-3"),
        ("1. Add 3 and 4.\n2. That makes 7.", "7"), ("Step 1: 5 apples. Step 2", "5"),
        ("10 m²", "10"), ("60 km/h", "60"), ("They have twenty-one apples.", "21"),
        ("一共需要三百二十一个。", "321"), ("还剩三分之二。", "2/3"), ("共有两万人", "20000"),
        ("12.", "12"), ("(1,234)", "1234"),
        # pairs, ratios, times
        ("It starts at 10:30.", "10:30"), ("The ratio is 3：2。", "3:2"),
        ("The point is (2, -1).", "(2,-1)"),
        (r"The solution is \( (-\infty, -6) \cup (1, \infty) \).", "(-∞,-6)∪(1,∞)"),
        # options
        ("(D) 27 sec", "D"), ("D", "D"), ("D. 27 sec", "D"), ("(d) 27 sec", "D"), ("B) 5", "B"),
        ("The answer is (C).", "C"), ("答案：B", "B"), ("选C", "C"), ("Option B is right", "B"),
        ("**D**", "D"), ("The correct option is A.", "A"), ("A: 42", "42"), ("A man is 42.", "42"),
        # yes and no
        ("Yes", "yes"), ("yes.", "yes"), ("No, helium was not the cause.", "no"), ("是", "yes"),
        ("是的，他会。", "yes"), ("不是。", "no"), ("The answer is yes.", "yes"), ("True", "true"),
        ("No one has 5.", "5"), ("正确", "true"),
        # texts
        ("It is not possible to tell.", "it is not possible to tell"), ("无法判断。", "无法判断"),
        ("A walk-in type wardrobe is most likely to be found in a **mansion**.", "mansion"),
        ("The  Cupboard", "cupboard"), ("Paris", "paris"), ("三角形", "三角形"),
        (r"\[\frac{n(n-3)}{2}\]", "(n(n-3))/(2)"),
    ],
)  # fmt: skip
def test_is_read_as(output: str, expected: str) -> None:
    assert key(output) == expected


@pytest.mark.parametrize("output", ["", " ", "...", "**", "。"])
def test_nothing_is_no_answer(output: str) -> None:
    assert KIND.read(output) is None


def test_code_is_a_text() -> None:
    code = "```python\nprint(1 + 2)\n```"
    assert key(code) == key(code + "\n") != "2"
    assert key(code) != key(code.replace("2", "3"))


@pytest.mark.parametrize(
    ("output", "display"),
    [
        ("It takes 2 hours and 30 minutes.", "2 hours and 30 minutes"),
        ("$3 and 50 cents", "3 dollars and 50 cents"),
        ("小明跑了2千克500克。", "2千克500克"),
        ("The answer is 12 km.", "12"),
        ("She makes $1,620.00 a day.", "$1,620.00"), ("答案是３.5万元。", "3.5万"),
        ("是的。", "是的"),
        ("The answer is 25 %.", "25 %"), ("It  Is So", "It  Is So"), ("(d) 27 sec", "D"),
    ],
)  # fmt: skip
def test_is_shown_as_it_was_written(output: str, display: str) -> None:
    found = KIND.read(output)
    assert found is not None
    assert found.display == display


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("The answer is 5,600.", "5600"), ("5600", "5,600"), ("五千六百元", "5600"), ("25%", "25"),
        ("0.75", "3/4"), (r"\boxed{\frac{6}{8}}", "0.75"), ("Yes, it is.", "yes"), ("(B) 3", "(b)"),
        ("$18.00", "18"), ("The Cat.", "a cat"), ("２７６，０００", "276,000"),
        # one way of writing roots and matrices
        ("√2", r"\sqrt{2}"), ("sqrt(3)/2", r"\frac{\sqrt{3}}{2}"), ("2倍根号3", r"2\sqrt 3"),
        ("√3/2", r"\frac{\sqrt3}{2}"), (r"$\frac{2\sqrt{3}}{3}$", "2√3/3"),
        (r"\begin{pmatrix}-1\\2\end{pmatrix}", r"$\begin{bmatrix} -1 \\ 2 \\ \end{bmatrix}$"),
        (r"The answer is \begin{pmatrix}1&2\end{pmatrix}.", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"\nicefrac{3}{4}", "0.75"), (r"$\sfrac{3}{4}$", "3/4"), (r"${3 \over 4}$", "3/4"),
        (r"\boxed{\num{1234}}", "1234"), (r"\boxed{\varnothing}", r"\emptyset"),
        ("∅", r"\emptyset"),
        ("The answer is <b>18</b>.", "18"), ("<strong>18 apples</strong><br>", "18"),
        # headings are no answers
        ("**Final Answer**\n\n18", "18"), ("**答案**\n18个", "18"), ("B。因为3+4=7", "B"),
        ("正解はBです。", "B"), ("解答：先算3+4=7。再算7×2=14。", "14"),
        ("### Answer\n18 apples\n\nCheck: 3 + 4 = 7", "18"), ("**Solution**\n3+4=7", "7"),
    ],
)  # fmt: skip
def test_equal(found: str, expected: str) -> None:
    assert KIND.equal(found, expected)


@pytest.mark.parametrize(
    "output",
    [
        "Die Antwort ist 18, weil sie 9 Eier für 2 Dollar verkauft.", "Antwort — 18 Dollar.",
        "Das Ergebnis ist 18. Sie verkauft 9 Eier.", "La réponse finale est donc 18, soit 9 × 2.",
        "Le résultat est 18. Elle vend 9 œufs.", "La respuesta final es 18: 9 huevos a 2 dólares.",
        "El resultado es 18. Vende 9 huevos.", "Ответ: 18 долларов, она продаёт 9 яиц по 2.",
        "Итого 18 долларов за 9 яиц.", "答えは18ドルです。9個の卵を2ドルで売ります。",
        "正解は18です。計算: 9 × 2", "答え：１８ドル\n9個を売ります。",
        "উত্তর হল ১৮ টাকা, কারণ ৯টি ডিম।",
        "উত্তর: 18। ৯টি ডিম ২ টাকা করে।", "คำตอบคือ ๑๘ ดอลลาร์ เพราะขายไข่ 9 ฟอง",
        "సమాధానం: 18. ఆమె 9 గుడ్లను అమ్ముతుంది.", "Jibu ni 18. Anauza mayai 9 kwa dola 2.",
    ],
)  # fmt: skip
def test_the_answer_is_announced_in_every_language_of_mgsm(output: str) -> None:
    assert key(output) == "18"


@pytest.mark.parametrize(
    ("found", "expected"),
    [("25%", "0.25"), ("0.33", "1/3"), ("18", "-18"), ("18", "180"), ("", ""),
     ("yes", "no"), ("18", ""), ("√10/5", "√2"), ("2^10/5", "2^2"), ("2√3/3", "2√1"),
     (r"\begin{pmatrix}-1\\2\end{pmatrix}", r"\begin{pmatrix}-1&2\end{pmatrix}"),
     (r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}")],
)  # fmt: skip
def test_not_equal(found: str, expected: str) -> None:
    assert not KIND.equal(found, expected)


TEMPLATES = [
    "The answer is {}.", "She makes ${:,} every day at the farmers' market.", "答案是{}个苹果。",
    "They need {:,} bolts in total.", "一共{}美元。", r"\boxed{{{}}}", "#### {}", "{}", "**{:,}**",
    "In total, 3 + 4 = 7, so {} of them are left.", "{:,} km/h", "After 3 days he has {} left.",
]  # fmt: skip


@given(st.integers(0, 10**9), st.sampled_from(TEMPLATES))
def test_any_number_is_found_in_any_wording(number: int, template: str) -> None:
    output = template.format(number)
    found = KIND.read(output)
    assert found is not None
    assert found.key == str(number)
    # What is shown reads as the same answer again.
    assert KIND.equal(found.display, output)


@given(
    st.text(
        alphabet="0123456789abc xyzABC答案是.,()[]{}\\$*^/-+=%:\n一二十百万点之分与和块",
        max_size=60,
    )
)
def test_any_text_is_survived(text: str) -> None:
    KIND.read(text)
    KIND.answer(f"<Thought>\n{text}")


@pytest.mark.parametrize(
    "piece",
    [
        "(1)",
        "1. a\n",
        "\\boxed{",
        "[1,",
        "1 ",
        "123,",
        "½",
        "1=",
        "\\frac{1}{",
        "answer is ",
        "$a",
        "**",
        "跑",
        "kilometer",
        "从",
        "больше",
        "between份",
        "π",
        "√2",
        "-",
    ],
)
def test_hostile_repetition_takes_no_time(piece: str) -> None:
    began = time.process_time()
    KIND.read(piece * (50_000 // len(piece)))
    for after in ("", " ∶", "sqrt½"):
        KIND.read("6 " + piece * (3_000 // len(piece)) + after)
    assert time.process_time() - began < 3  # seconds of our own CPU; 0.1 is usual


def test_prompt_is_the_question_alone() -> None:
    job = ReasoningJob(question="1+1?")
    assert kind_of(job) is KIND
    assert KIND.messages(job) == [Message(role="user", content="1+1?")]


def test_the_expected_answer_never_reaches_the_prompt() -> None:
    secret = "the secret 8191"
    plain = ReasoningJob(question="1+1?", system_prompt="marco-o1")
    labelled = ReasoningJob(
        question="1+1?", system_prompt="marco-o1", expected=secret, metadata={"note": secret}
    )
    assert KIND.messages(labelled) == KIND.messages(plain)
    assert secret not in repr(KIND.messages(labelled))


def test_system_prompts() -> None:
    preset = KIND.messages(ReasoningJob(question="a", system_prompt="marco-o1"))
    assert [m.role for m in preset] == ["system", "user"]
    assert preset[0].content == SYSTEM_PROMPTS["marco-o1"]
    for part in ("Marco-o1", "<Thought>", "<Output>", "英文"):
        assert part in preset[0].content
    own = KIND.messages(ReasoningJob(question="a", system_prompt="Be brief."))
    assert own[0] == Message(role="system", content="Be brief.")
