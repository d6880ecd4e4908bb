"""The rows that a model of COCO's 80 classes takes from a model of Objects365's 365 (v2).

The pairs are those of LW-DETR (arXiv:2406.03459), by the authors of Group DETR. Classes of
Objects365 are told by their number, since copies of its files differ in the spelling of names.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ..data.objects365 import is_objects365

# COCO's class = number and name of the class of Objects365
PAIRS = """
person = 1 Person
bicycle = 47 Bicycle
car = 6 Car
motorcycle = 59 Motorcycle
airplane = 115 Airplane
bus = 56 Bus
train = 117 Train
truck = 66 Truck
boat = 22 Boat
traffic light = 41 Traffic Light
fire hydrant = 177 Fire Hydrant
stop sign = 128 Stop Sign
parking meter = 250 Parking meter
bench = 25 Bench
bird = 57 Wild Bird
cat = 140 Cat
dog = 93 Dog
horse = 79 Horse
sheep = 100 Sheep
cow = 97 Cow
elephant = 145 Elephant
bear = 296 Bear
zebra = 179 Zebra
giraffe = 181 Giraffe
backpack = 39 Backpack
umbrella = 40 Umbrella
handbag = 14 Handbag/Satchel
tie = 44 Tie
suitcase = 121 Luggage
frisbee = 220 Frisbee
skis = 149 Skating and Skiing shoes
snowboard = 174 Snowboard
sports ball = 166 Baseball
kite = 155 Kite
baseball bat = 138 Baseball Bat
baseball glove = 114 Baseball Glove
skateboard = 146 Skateboard
surfboard = 147 Surfboard
tennis racket = 205 Tennis Racket
bottle = 9 Bottle
wine glass = 36 Wine Glass
cup = 11 Cup
fork = 89 Fork
knife = 85 Knife
spoon = 94 Spoon
bowl = 27 Bowl/Basin
banana = 113 Banana
apple = 83 Apple
sandwich = 266 Sandwich
orange = 105 Orange/Tangerine
broccoli = 142 Broccoli
carrot = 153 Carrot
hot dog = 235 Hot dog
pizza = 144 Pizza
donut = 151 Donut
cake = 98 Cake
chair = 3 Chair
couch = 51 Couch
potted plant = 26 Potted Plant
bed = 76 Bed
dining table = 99 Dinning Table
toilet = 154 Toilet
tv = 38 Moniter/TV
laptop = 74 Laptop
mouse = 116 Mouse
remote = 133 Remote
keyboard = 107 Keyboard
cell phone = 62 Cell Phone
microwave = 164 Microwave
oven = 135 Oven
toaster = 278 Toaster
sink = 82 Sink
refrigerator = 134 Refrigerator
book = 19 Book
clock = 95 Clock
vase = 31 Vase
scissors = 170 Scissors
teddy bear = 71 Stuffed Toy
hair drier = 329 Hair Dryer
toothbrush = 227 Toothbrush
"""
SAME, SYNONYM, NEAR = "same name", "synonym", "approximate"
# all others have the same name
SYNONYMS = ("handbag", "suitcase", "bowl", "orange", "dining table", "tv", "hair drier")
NEARS = ("bird", "skis", "sports ball", "teddy bear")  # narrower, wider, or something beside it


class Source(NamedTuple):
    """The class of Objects365 that stands for one of COCO's."""

    row: int  # of the 365 rows, from 0
    name: str
    likeness: str  # SAME, SYNONYM or NEAR


def _read_pairs() -> dict[str, Source]:
    pairs = {}
    for line in PAIRS.strip().splitlines():
        own, _, theirs = line.partition(" = ")
        number, _, name = theirs.partition(" ")
        likeness = SYNONYM if own in SYNONYMS else NEAR if own in NEARS else SAME
        pairs[own] = Source(int(number) - 1, name, likeness)
    return pairs


SOURCES = _read_pairs()  # by COCO's 80 names, in the order of COCO


def coco_rows(old_classes: Sequence[str]) -> dict[str, int]:
    """Returns the row of each of COCO's names; none if the classes are not Objects365's."""
    if not is_objects365(old_classes):
        return {}
    return {name: source.row for name, source in SOURCES.items()}
