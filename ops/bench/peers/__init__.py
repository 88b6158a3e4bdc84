"""The same load through other projects' code: its_hub, treequest, optillm, llm-reasoners.

environment: where they are installed; compare: runs them, one after the other; adapter: what the
scripts with_*.py share, which run in that environment and so import nothing of ours but it
"""
