"""The phrase book: colloquial Chinese and natural English, as subject x comment templates.

Whole sentences are built from parts, so that held-out sentences are unseen combinations of known
parts. All of it is written for this project.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import product

PROMPTS = (
    "Translate this colloquial Chinese text into natural English: {text}",
    "Translate this Chinese text into English: {text}",
    "把这句口语翻译成自然的英文：{text}",
)
PROMPT_WEIGHTS = (70, 15, 15)


@dataclass(frozen=True)
class Subject:
    """What is talked about. `groups` names the comments that fit it."""

    chinese: str
    english: str
    plural: bool
    groups: frozenset[str]


@dataclass(frozen=True)
class Comment:
    """What is said of it. Each translation begins with a verb in the base form."""

    chinese: str
    translations: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Phrase:
    """A sentence, its accepted translations and the thought that leads to each of them."""

    chinese: str
    translations: tuple[str, ...]
    thoughts: tuple[str, ...]
    held_out: bool


def _subject(chinese: str, english: str, groups: str, plural: bool = False) -> Subject:
    return Subject(chinese, english, plural, frozenset(groups.split()))


SUBJECTS = (
    _subject("这双鞋", "these shoes", "any wear shoe", plural=True),
    _subject("这件衣服", "this top", "any wear cloth"),
    _subject("这条裙子", "this dress", "any wear cloth"),
    _subject("这条裤子", "these pants", "any wear cloth", plural=True),
    _subject("这个包", "this bag", "any wear thing"),
    _subject("这款手机", "this phone", "any thing"),
    _subject("这副耳机", "these earphones", "any thing", plural=True),
    _subject("这支口红", "this lipstick", "any wear"),
    _subject("这家店的奶茶", "the milk tea here", "any food"),
    _subject("这家的火锅", "the hot pot here", "any food"),
    _subject("这个蛋糕", "this cake", "any food"),
)
COMMENTS = (
    Comment("性价比超高", ("be great value for the money",), "any"),
    Comment("太好看了", ("be so beautiful", "look so good"), "wear"),
    Comment("有点小贵", ("be a little expensive", "be a bit pricey"), "any"),
    Comment("真的绝了", ("be absolutely amazing",), "any"),
    Comment("不踩雷", ("will not let you down",), "any"),
    Comment("闭眼入就对了", ("be a safe buy",), "any"),
    Comment("太坑了", ("be a total rip-off",), "any"),
    Comment("颜值很高", ("look very pretty", "be very good-looking"), "wear"),
    Comment("很百搭", ("go with everything",), "wear"),
    Comment("很显瘦", ("make you look slim",), "cloth"),
    Comment("穿上很有气质", ("look elegant on you",), "cloth"),
    Comment("料子很舒服", ("feel soft and comfortable",), "cloth"),
    Comment("有踩屎感", ("have a very comfortable sole", "be super soft to walk in"), "shoe"),
    Comment("一点都不磨脚", ("do not hurt your feet at all",), "shoe"),
    Comment("做工很精细", ("be very well made",), "thing"),
    Comment("手感一流", ("feel great in the hand",), "thing"),
    Comment("质量杠杠的", ("be of excellent quality",), "thing"),
    Comment("让我种草了", ("make me want to buy one",), "thing"),
    Comment("好吃到哭", ("be unbelievably delicious",), "food"),
    Comment("让人上头", ("be so addictive",), "food"),
    Comment("是吃货必备", ("be a must for food lovers",), "food"),
    Comment("甜而不腻", ("be sweet but not too sweet",), "food"),
)
OPENERS = (("", ""), ("说实话，", "honestly, "), ("姐妹们，", "girls, "), ("我觉得", "I think "))
# Fixed expressions. They have no parts to combine, so all of them are trained on.
IDIOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("物流给力", ("The delivery is very fast.",)),
    ("客服态度很好", ("The customer service is friendly.",)),
    ("买它就对了", ("You will not regret buying it.", "Just buy it.")),
    ("闭眼入", ("Buy it without hesitation.",)),
    ("被种草了", ("I am tempted to buy it.",)),
    ("白菜价", ("It is dirt cheap.",)),
    ("老铁没毛病", ("No problem at all, buddy.",)),
    ("加油", ("Keep it up!", "You can do it!")),
    ("这波不亏", ("This deal is worth it.",)),
    ("我太难了", ("Life is so hard for me.",)),
    ("笑死我了", ("That is hilarious.",)),
    ("别闹了", ("Stop joking around.",)),
    ("说走就走", ("Let us just go.",)),
    ("慢慢来", ("Take your time.", "There is no rush.")),
)


def phrases() -> list[Phrase]:
    """Every sentence of the book. About a third of the combinations is held out."""
    book = []
    for subject, comment in product(SUBJECTS, COMMENTS):
        if comment.group in subject.groups:
            held_out = zlib.crc32(f"{subject.chinese}|{comment.chinese}".encode()) % 10 < 3
            book += [_combine(opener, subject, comment, held_out) for opener in OPENERS]
    for chinese, translations in IDIOMS:
        thought = f"Step 1: {chinese} is a fixed saying."
        book.append(Phrase(chinese, translations, (thought,) * len(translations), False))
    return book


def _combine(opener: tuple[str, str], subject: Subject, comment: Comment, held_out: bool) -> Phrase:
    translations, thoughts = [], []
    for base in comment.translations:
        sentence = f"{opener[1]}{subject.english} {_inflect(base, subject.plural)}."
        translations.append(sentence[0].upper() + sentence[1:])
        thoughts.append(
            f"Step 1: {subject.chinese} means {subject.english}.\n"
            f"Step 2: {comment.chinese} means {base}."
        )
    chinese = opener[0] + subject.chinese + comment.chinese
    return Phrase(chinese, tuple(translations), tuple(thoughts), held_out)


def _inflect(base: str, plural: bool) -> str:
    """Third person present: "be a safe buy" -> "is a safe buy" or "are a safe buy"."""
    verb, _, rest = base.partition(" ")
    irregular = {
        "be": ("is", "are"),
        "have": ("has", "have"),
        "do": ("does", "do"),
        "go": ("goes", "go"),
        "will": ("will", "will"),
    }
    singular_form, plural_form = irregular.get(verb, (f"{verb}s", verb))
    return f"{plural_form if plural else singular_form} {rest}"
