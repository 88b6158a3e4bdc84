"""Prompts with several good answers: gifts for a hobby, two numbers with a given sum."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ops.pocket.problems import Language

# (English hobby, Chinese hobby, English gifts, Chinese gifts)
HOBBIES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "painting",
        "画画",
        ("a set of brushes", "a box of paints", "a sketch book", "an easel"),
        ("一套画笔", "一盒颜料", "一本素描本", "一个画架"),
    ),
    (
        "reading",
        "读书",
        ("a good novel", "a reading lamp", "a nice bookmark", "a book stand"),
        ("一本好小说", "一盏台灯", "一枚书签", "一个书架"),
    ),
    (
        "cooking",
        "做饭",
        ("a sharp knife", "a cook book", "a new apron", "a box of spices"),
        ("一把好刀", "一本菜谱", "一条围裙", "一盒香料"),
    ),
    (
        "music",
        "音乐",
        ("a concert ticket", "a pair of earphones", "a record", "a small speaker"),
        ("一张音乐会门票", "一副耳机", "一张唱片", "一个小音箱"),
    ),
    (
        "hiking",
        "爬山",
        ("a water bottle", "a walking stick", "a trail map", "a warm hat"),
        ("一个水壶", "一根登山杖", "一张地图", "一顶帽子"),
    ),
    (
        "running",
        "跑步",
        ("a sports watch", "a pair of running socks", "a head band", "a running shirt"),
        ("一块运动手表", "一双运动袜", "一条头带", "一件运动衫"),
    ),
    (
        "gardening",
        "种花",
        ("a bag of seeds", "a watering can", "a pair of gloves", "a flower pot"),
        ("一包种子", "一个洒水壶", "一副手套", "一个花盆"),
    ),
    (
        "tea",
        "喝茶",
        ("a tea pot", "a box of green tea", "a set of cups", "a tea tray"),
        ("一个茶壶", "一盒绿茶", "一套茶杯", "一个茶盘"),
    ),
    (
        "photos",
        "拍照",
        ("a camera bag", "a photo album", "a small tripod", "a picture frame"),
        ("一个相机包", "一本相册", "一个三脚架", "一个相框"),
    ),
    (
        "games",
        "玩游戏",
        ("a board game", "a puzzle", "a game pad", "a deck of cards"),
        ("一套桌游", "一盒拼图", "一个手柄", "一副扑克牌"),
    ),
    (
        "travel",
        "旅行",
        ("a travel pillow", "a guide book", "a passport case", "a light backpack"),
        ("一个颈枕", "一本旅行指南", "一个护照夹", "一个背包"),
    ),
    (
        "fishing",
        "钓鱼",
        ("a fishing rod", "a box of hooks", "a folding chair", "a sun hat"),
        ("一根鱼竿", "一盒鱼钩", "一把折叠椅", "一顶遮阳帽"),
    ),
)


@dataclass(frozen=True)
class OpenEnded:
    """A prompt with one of its good answers."""

    prompt: str
    thought: str
    output: str


def draw_open_ended(rng: random.Random, language: Language) -> OpenEnded:
    """A gift (60 %) or a pair of numbers."""
    return _gift(rng, language) if rng.random() < 0.6 else _pair(rng, language)


def _gift(rng: random.Random, language: Language) -> OpenEnded:
    hobby_en, hobby_zh, gifts_en, gifts_zh = rng.choice(HOBBIES)
    if language == "en":
        gift = rng.choice(gifts_en)
        return OpenEnded(
            f"Suggest a gift for a friend who likes {hobby_en}.",
            f"Step 1: The friend likes {hobby_en}.\nStep 2: For that, {gift} is useful.",
            f"{gift[0].upper()}{gift[1:]}.",
        )
    gift = rng.choice(gifts_zh)
    return OpenEnded(
        f"给喜欢{hobby_zh}的朋友推荐一份礼物。",
        f"第1步：朋友喜欢{hobby_zh}。\n第2步：{gift}很合适。",
        f"{gift}。",
    )


def _pair(rng: random.Random, language: Language) -> OpenEnded:
    total = rng.randint(10, 199)
    first = rng.randint(1, total - 1)
    work = f"{total}-{first}={total - first}"
    if language == "en":
        return OpenEnded(
            f"Find two numbers whose sum is {total}.",
            f"Step 1: Take {first} as the first number.\nStep 2: The other number is {work}.",
            f"{first} and {total - first}.",
        )
    return OpenEnded(
        f"找出两个数，它们的和是{total}。",
        f"第1步：第一个数取{first}。\n第2步：另一个数是{work}。",
        f"{first}和{total - first}。",
    )
