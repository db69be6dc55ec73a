"""Pictures for the small model: emoji on backgrounds, and drawn shapes and letters."""

import io
from collections.abc import Sequence

import numpy as np
import resvg_py
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

SIDE = 128  # a little more than the 112 pixels of the model, for random crops
COLOURS = {
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "grey": (135, 135, 135),
    "red": (215, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 60),
    "green": (50, 150, 70),
    "blue": (50, 90, 210),
    "purple": (130, 60, 175),
    "pink": (245, 155, 195),
    "brown": (125, 80, 45),
}
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "star")
COUNTS = ("no", "one", "two", "three", "four", "five", "six")
PLACES = {
    "top left": (0.3, 0.3),
    "top": (0.5, 0.27),
    "top right": (0.7, 0.3),
    "left": (0.27, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.73, 0.5),
    "bottom left": (0.3, 0.7),
    "bottom": (0.5, 0.73),
    "bottom right": (0.7, 0.7),
}


def plain(svg: str) -> Image.Image:
    """A drawing on white, nearly as large as the picture: what models are tested on."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    _paste(picture, _rendered(svg.replace("currentColor", "black"), round(0.85 * SIDE)), (0.5, 0.5))
    return picture


def varied(svg: str, rng: np.random.Generator) -> Image.Image:
    """A drawing of some size at some place on some ground, turned a little."""
    picture = _ground(rng)
    size = rng.uniform(0.6, 1.0)
    # What a set draws in one colour, which it leaves open, must be seen on the ground.
    ink = COLOURS["black" if np.asarray(picture).mean() > 110 else "white"]
    icon = _rendered(svg.replace("currentColor", f"rgb{ink}"), round(size * SIDE))
    if rng.random() < 0.6:
        icon = _restyled(icon, rng)
    if rng.random() < 0.5:
        icon = icon.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    room = (1 - size) / 2 + 0.05
    _paste(picture, icon, tuple(0.5 + rng.uniform(-room, room, 2)))
    return picture


def shapes(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """One to six shapes of one kind and colour, or two of different kinds; and captions."""
    ground, first, second = rng.choice(list(COLOURS), 3, replace=False)
    kind, other = rng.choice(SHAPES, 2, replace=False)
    picture = Image.new("RGB", (SIDE, SIDE), _near(rng, COLOURS[ground]))
    if rng.random() < 0.3:
        _shape(picture, rng, kind, first, (0.3, 0.5), 0.17)
        _shape(picture, rng, other, second, (0.7, 0.5), 0.17)
        pair = f"a {first} {kind} to the left of a {second} {other}"
        return picture, [pair, f"{pair} on {ground}", f"a {second} {other} and a {first} {kind}"]
    count = int(rng.integers(1, len(COUNTS)))
    if count == 1:
        place = str(rng.choice(list(PLACES)))
        size, word = [(0.1, "small "), (0.16, ""), (0.24, "large ")][int(rng.integers(3))]
        _shape(picture, rng, kind, first, PLACES[place], size)
        what = f"a {word}{first} {kind}"
        return picture, [what, f"{what} at the {place}", f"{what} on a {ground} background"]
    for place in rng.choice(list(PLACES.values()), count, replace=False):
        _shape(picture, rng, kind, first, tuple(place), 0.085)
    what = f"{COUNTS[count]} {first} {kind}s".replace("crosss", "crosses")
    return picture, [what, f"{what} on {ground}", f"{what} on a {ground} background"]


def letter(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """A letter or digit; and captions."""
    ground, ink = rng.choice(list(COLOURS), 2, replace=False)
    sign = str(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")))
    picture = Image.new("RGB", (SIDE, SIDE), _near(rng, COLOURS[ground]))
    font = ImageFont.load_default(size=float(rng.uniform(50, 100)))
    place = tuple(SIDE * (0.5 + rng.uniform(-0.12, 0.12, 2)))
    ImageDraw.Draw(picture).text(place, sign, _near(rng, COLOURS[ink]), font, anchor="mm")
    kind = "digit" if sign.isdigit() else "capital letter" if sign.isupper() else "small letter"
    what = f"the {kind} {sign}"
    return picture, [what, f"{what} in {ink}", f"a {ink} {sign} on a {ground} background"]


def _rendered(svg: str, side: int) -> Image.Image:
    """RGBA with its longer edge of so many pixels."""
    data = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def _restyled(icon: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The drawing in other colours, perhaps paler, grey or flat, and with drawn outlines."""
    alpha = icon.getchannel("A")
    colours = Image.new("RGB", icon.size, "white")
    colours.paste(icon, mask=alpha)
    edges = np.asarray(colours.convert("L").filter(ImageFilter.FIND_EDGES)) > rng.uniform(25, 60)
    if rng.random() < 0.5:
        hue, saturation, value = colours.convert("HSV").split()
        turn = int(rng.integers(-20, 21))
        hue = hue.point([(angle + turn) % 256 for angle in range(256)])
        share = rng.choice([0.0, rng.uniform(0.3, 1.4)], p=[0.3, 0.7])
        saturation = saturation.point([min(255, round(level * share)) for level in range(256)])
        colours = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < 0.3:
        colours = ImageOps.posterize(colours, int(rng.integers(1, 4)))
    if rng.random() < 0.3:
        colours = Image.blend(colours, Image.new("RGB", icon.size, "white"), rng.uniform(0.2, 0.75))
    if rng.random() < 0.6:
        # A line of one to three pixels around it, and where the brightness changes within.
        width = int(rng.choice([3, 5]))
        around = np.asarray(alpha.filter(ImageFilter.MaxFilter(width))) > 128
        inside = np.asarray(alpha.filter(ImageFilter.MinFilter(width))) > 128
        line = Image.fromarray(((around & ~inside) | (edges & inside)).astype(np.uint8) * 255)
        colours.paste(_near(rng, COLOURS["black"]), mask=line)
        alpha = ImageChops.lighter(alpha, line)
    colours.putalpha(alpha)
    return colours


def _paste(picture: Image.Image, icon: Image.Image, centre: Sequence[float]) -> None:
    corner = (round(SIDE * centre[0] - icon.width / 2), round(SIDE * centre[1] - icon.height / 2))
    picture.paste(icon, corner, icon)


def _ground(rng: np.random.Generator) -> Image.Image:
    """White, as drawings are most often on, one colour, a ramp of two, coarse spots, or stripes."""
    kind = rng.random()
    if kind < 0.4:
        return Image.new("RGB", (SIDE, SIDE), "white")
    colour = _near(rng, COLOURS[str(rng.choice(list(COLOURS)))])
    if kind < 0.7:
        return Image.new("RGB", (SIDE, SIDE), colour)
    other = np.array(COLOURS[str(rng.choice(list(COLOURS)))], float)
    if kind < 0.8:
        at = np.linspace(0, 1, SIDE)[:, None, None] * np.ones((1, SIDE, 1))
        share = at if rng.random() < 0.5 else at.transpose(1, 0, 2)
    elif kind < 0.9:
        coarse = rng.random((int(rng.integers(2, 9)),) * 2).astype(np.float32)
        share = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        share = share[..., None].clip(0, 1)
    else:
        along = np.add.outer(np.arange(SIDE), np.arange(SIDE) * int(rng.integers(-1, 2)))
        share = (along // int(rng.integers(4, 20)) % 2)[..., None]
    pixels = (1 - share) * np.array(colour) + share * other
    return Image.fromarray(pixels.astype(np.uint8))


def _shape(
    picture: Image.Image,
    rng: np.random.Generator,
    kind: str,
    colour: str,
    centre: Sequence[float],
    radius: float,
) -> None:
    """Draws one shape; centre and radius are shares of the side, and vary a little."""
    # At twice the size, for smooth edges.
    side, fill = 2 * SIDE, _near(rng, COLOURS[colour])
    layer = picture.resize((side, side))
    pen, r = ImageDraw.Draw(layer), side * radius * rng.uniform(0.9, 1.1)
    x, y = (side * (at + rng.uniform(-0.02, 0.02)) for at in centre)
    box = (x - r, y - r, x + r, y + r)
    if kind == "circle":
        pen.ellipse(box, fill)
    elif kind == "ring":
        pen.ellipse(box, None, fill, max(2, round(r / 3)))
    elif kind == "square":
        pen.rectangle(box, fill)
    elif kind == "triangle":
        pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill)
    elif kind == "diamond":
        pen.polygon([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill)
    elif kind == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        far = np.where(np.arange(10) % 2, 0.45, 1.1) * r
        pen.polygon(
            list(zip(x + far * np.cos(angles), y + far * np.sin(angles), strict=True)), fill
        )
    else:
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill)
    picture.paste(layer.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _near(rng: np.random.Generator, colour: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(np.array(colour) + rng.integers(-20, 21, 3), 0, 255))
