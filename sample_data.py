"""Images that nobody has to download and nobody owns: generated "dead leaves".

    python sample_data.py --count 2000 --size 384 --seed 0 --output datasets/leaves

Opaque random shapes fall on one another until they cover the picture. Given a power
law for their sizes, edges, areas and spectra come out like those of photographs, and
restoration networks trained on such pictures work on real ones. Papers: Lee, Mumford
and Huang, "Occlusion models for natural images", IJCV 2001; Achddou, Gousseau and
Ladjal, "Synthetic images as a regularity prior for image restoration neural
networks", SSVM 2021. Here lines, words, ragged outlines, uneven light, blur, grain and
skies are added to the leaves.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import shutil
import signal
import string
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, PngImagePlugin

import command_line

DEFAULT_COUNT = 2000  # pictures
DEFAULT_SIZE = 384  # px, so that crops of 256 px, the source's, are seldom the same
MIN_SIZE = 16  # px: the smallest crop that is trained on
SAMPLE_COUNT = 48  # pictures: about 10 s on one core
SAMPLE_SIZE = 256  # px
SAMPLE_SEED = 0
TEST_SEED = 1  # unlike SAMPLE_SEED, so no test picture is trained on
NUM_TEST_LEAVES = 2  # pictures, beside one photograph
PHOTOGRAPH = "grace_hopper.jpg"  # matplotlib's: US Navy, public domain
PNG_COMPRESS_LEVEL = 3  # zlib's, of 9: more takes twice the time and saves little

# What follows was tuned until power spectrum, gradients and luminance came close to
# those of photographs. Changed numbers give other pictures for the same seed, and
# need another number of the recipe: pictures of an older one are then drawn again.
RECIPE = 2
OVERSAMPLING = 2  # drawn this many times larger, then averaged: smooth edges
NUM_LARGE = 40  # leaves, first of all: next to no hole remains
LARGE_RADII = (1 / 8, 1 / 3)  # of a side
NUM_LEAVES = (150, 2500)  # after the large ones: from bare walls to foliage
MIN_RADII = (1.0, 2.5)  # px, of a picture's smallest leaf: confetti or pebbles
MAX_RADIUS = 1 / 3  # of a side
MAX_STRETCH = 4.0  # a leaf's longer axis by its shorter
NUM_OUTLINES = 32  # of each kind: ellipses, rectangles, polygons
UNIT_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.8  # area near pi
CLUMPED = 0.6  # part of the pictures, in which small leaves gather
IN_CLUMPS = 0.85  # part of their small leaves
MAX_CLUMPS = 3
CLUMP_SPREADS = (0.05, 0.25)  # of a side, standard deviation
SMALL_LEAF = 1 / 16  # of a side, radius: larger ones lie anywhere
ALIGNED = 0.6  # part of the rectangles: parallel, as walls and windows are
TILT = 0.1  # radians, standard deviation of their angle between pictures

POOL_SIZE = 12  # basic colours of one picture
NUM_COLOURS = 256  # variants of them
LUMINANCE_SHAPE = (1.3, 1.3)  # of a beta density: nearly even, fewer blacks and whites
HUE_SPREAD = 0.8  # radians around a picture's own hue
MEAN_CHROMAS = (4, 80)  # of 255: grey or colourful pictures
MAX_CHROMA = 1.2  # by the distance to black or white: these have no hue
LIGHTNESS_SPREAD, TINT_SPREAD = 8, 2  # of 255, between variants

TEXTURED = (0.6, 1.0)  # part of a picture's leaves
SHADED = 0.6  # part of all leaves
SOFT_EDGED = 0.3  # part of all leaves
RAGGED = 0.3  # part of all leaves: torn along a noise, as foliage and coasts are
TEXTURE_SIZE = 2  # px: smaller leaves show no texture
SHADE_SIZE = 12  # px: smaller leaves are neither shaded nor ragged
SHADOW = 0.5  # the darkest that shading makes a colour
SHADE_MIDDLE = (10, 10, 54, 54)  # px of 64: what a turned square never leaves empty
SOFT_EDGE = 4  # px of the canvas, mean
TEXTURE_STRENGTHS = (0.15, 0.3, 0.6, 1.0)  # some faint, as those of skin and walls
MIXTURE = np.linspace(0, 1, 256)[:, None]  # of two colours, by a texture's value
NUM_NOISES = 5  # noise textures
NOISE_EXPONENTS = (0.6, 2.2)  # amplitude is 1 / frequency to this power
STRETCHES = (1, 1, 3, 8)  # of noise, along one direction
CONTRASTS = (40, 60, 150)  # of noise, of 255; the last is nearly two-coloured
COAST_EXPONENTS = (1.6, 2.4)  # of the noises whose level sets tear leaves
NUM_COASTS = 2  # and as many of what they leave over
COAST_ISLANDS = 3  # the longest wave of a coast, in waves a side
NUM_GRAVELS = 2  # textures of many small stones, blades or flakes
GRAVEL_RADII = (1.2, 5.0)  # px, of the smallest stones of a texture
GRAVEL_RANGE = 4  # the largest stone by the smallest
MAX_STONES = 15_000  # of a texture of `DEFAULT_SIZE`, for time's sake
STONE_GROUND = 4  # squared radii of ground to a stone: next to none stays bare
STONE_CORNERS = 8
STONE_REACH = (0.6, 1.2)  # of its radius, from a stone's middle to a corner
STONE_TURN = 6.0  # radians, at most: any direction
GRAVEL_CONTRASTS = (20, 60)  # of 255, between stones
GRAVEL_SPREADS = (0.2, 3.0)  # radians: combed as fur and grass, or strewn
NUM_PATTERNS = 3  # waves, stripes, checkers, ramps
MIN_PERIOD = 2.5  # px, of patterns
BENT = 0.5  # part of the patterns
MAX_BEND = 0.03  # radians for each unit of a noise

MAX_BUNDLES = 5  # of lines (hair, twigs, grass)
NUM_LINES = (2, 24)  # in a bundle
LINE_WIDTHS = (0.5, 4.0)  # px
LINE_LENGTHS = (0.08, 0.6)  # of a side
LINE_SPREADS = (0.05, 0.3, 2.0)  # radians: parallel, a tuft, a tangle
LINE_BEND = 0.8  # radians from end to end, standard deviation
MAX_WORDS = 4  # lettered blocks
FONT_SIZES = (8, 10, 12, 16, 20, 28, 40)  # px; few, so that fonts are loaded once
LETTERS = list(string.ascii_letters + string.digits + "    .,&!?")
UPRIGHT = 0.7  # part of the blocks
UPRIGHT_TILT = 10  # degrees, standard deviation

SKY_PICTURES = 0.3  # part of the pictures
SOFT_PICTURES = 0.4  # part of the pictures
SKY_HEIGHTS = (0.1, 0.6)  # of a side
SOFT_PICTURE_BLURS = (0.3, 1.0)  # px, Gaussian
MAX_UNEVENNESS = 0.6  # of a picture's light: from about 0.7 to 1.3 times the mean
LIGHT_CELLS = 8  # a side: light changes over an eighth of it
GRAIN = 2.0  # of 255, mean of the pictures' standard deviations


class SampleFolders(NamedTuple):
    """Folders of the sample dataset."""

    training: Path
    test: Path


class Painter:
    """One picture while it is drawn, on a canvas `OVERSAMPLING` times its size.

    Args:
        size: int, side of the picture in px.
        rng: `np.random.Generator`, the source of all that is random.
    """

    def __init__(self, size, rng):
        self.rng = rng
        self.side = size * OVERSAMPLING
        self.colours = _build_colours(rng)
        self.outlines = _build_outlines(rng)
        self.fields = _build_fields(self.side, rng)
        self.coasts = _build_coasts(self.side, rng)
        self.shades = _build_shades()
        self.angle = rng.normal(0, TILT)
        self.textured = rng.uniform(*TEXTURED)
        self.horizon = self._choose_horizon()
        self.clumps = self._choose_clumps()
        sky = self.shades[0].resize((self.side, self.side), Image.Resampling.BILINEAR)
        self.canvas = self._fill(self.side, self.side, sky)
        self.pen = ImageDraw.Draw(self.canvas)

    def paint(self):
        """Draws everything, in the order in which it falls.

        Returns:
            `PIL.Image.Image`, RGB, of the picture's size.
        """
        for radius in self.side * self.rng.uniform(*LARGE_RADII, NUM_LARGE):
            self.paint_leaf(radius)
        events = [(self.paint_leaf, radius) for radius in self._draw_radii()]
        events += [(self.paint_bundle,)] * self.rng.integers(MAX_BUNDLES + 1)
        events += [(self.paint_words,)] * self.rng.integers(MAX_WORDS + 1)
        for index in self.rng.permutation(len(events)):
            paint, *arguments = events[index]
            paint(*arguments)
        if self.rng.random() < SOFT_PICTURES:
            radius = OVERSAMPLING * self.rng.uniform(*SOFT_PICTURE_BLURS)
            self.canvas = self.canvas.filter(ImageFilter.GaussianBlur(radius))
        return self._expose(self.canvas.reduce(OVERSAMPLING))

    def paint_leaf(self, radius):
        """Draws one leaf: flat or textured, hard, soft or ragged, shaded or not.

        Args:
            radius: float, in px of the canvas.
        """
        outline = self._draw_outline(radius)
        chances = (self.textured, SOFT_EDGED, SHADED, RAGGED)
        textured, soft, shaded, ragged = self.rng.random(4) < chances
        textured = textured and radius > TEXTURE_SIZE * OVERSAMPLING
        is_large = radius > SHADE_SIZE * OVERSAMPLING
        shaded, ragged = shaded and is_large, ragged and is_large
        if not (textured or soft or shaded or ragged):
            self.pen.polygon(outline.ravel().tolist(), fill=self._choose_colour())
            return
        blur = int(min(radius / 4, self.rng.exponential(SOFT_EDGE))) + 1 if soft else 0
        box = self._bound(outline, margin=2 * blur)
        if box is None:
            return
        left, top, right, bottom = box
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon((outline - (left, top)).ravel().tolist(), fill=255)
        if ragged:
            coast = self.coasts[self.rng.integers(len(self.coasts))]
            mask = ImageChops.multiply(mask, self._crop(coast, *mask.size))
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(blur))
        patch = self._fill(*mask.size, self._choose_field() if textured else None)
        if shaded:
            patch = self._shade(patch)
        self.canvas.paste(patch, (left, top), mask)

    def paint_bundle(self):
        """Draws a bundle of thin curves from one place: hair, twigs, grass."""
        rng = self.rng
        count = rng.integers(*NUM_LINES)
        angle, spread = rng.uniform(0, 2 * np.pi), rng.choice(LINE_SPREADS)
        length = self.side * rng.uniform(*LINE_LENGTHS)
        width = OVERSAMPLING * np.exp(rng.uniform(*np.log(LINE_WIDTHS)))
        bend = rng.normal(0, LINE_BEND)
        colours = _vary_colours(np.array([self._choose_colour()]), count, rng)
        starts = self._draw_centre() + rng.normal(0, length / 4, (count, 2))
        along = np.linspace(0, 1, 9)
        for start, colour in zip(starts, colours, strict=True):
            turn = angle + rng.normal(0, spread) + (bend + rng.normal(0, 0.3)) * along
            reach = length * rng.uniform(0.4, 1.2) * along
            curve = start + np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]
            self.pen.line(
                curve.ravel().tolist(),
                fill=colour,
                width=max(1, round(width * rng.uniform(0.6, 1.2))),
                joint="curve",
            )

    def paint_words(self):
        """Draws a block of random words, turned at random."""
        rng = self.rng
        font = _load_font(int(rng.choice(FONT_SIZES)) * OVERSAMPLING)
        rows = rng.choice(LETTERS, (rng.integers(1, 5), rng.integers(3, 16)))
        text = "\n".join("".join(row) for row in rows)
        left, top, right, bottom = self.pen.multiline_textbbox((0, 0), text, font)
        mask = Image.new("L", (int(right - left) + 1, int(bottom - top) + 1))
        ImageDraw.Draw(mask).multiline_text((-left, -top), text, 255, font)
        is_upright = rng.random() < UPRIGHT
        degrees = rng.normal(0, UPRIGHT_TILT) if is_upright else rng.uniform(0, 360)
        mask = mask.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        corner = self._draw_centre() - np.divide(mask.size, 2)
        self.canvas.paste(self._choose_colour(), tuple(corner.astype(int)), mask)

    def _draw_radii(self):
        """Radii in px of the canvas."""
        count = self.rng.integers(*NUM_LEAVES)
        least = OVERSAMPLING * np.exp(self.rng.uniform(*np.log(MIN_RADII)))
        return _draw_power_law(least, MAX_RADIUS * self.side, count, self.rng)

    def _draw_outline(self, radius):
        """Corners `(n, 2)` of an ellipse, a rectangle or a polygon."""
        rng = self.rng
        corners = self.outlines[rng.integers(len(self.outlines))]
        is_aligned = corners is UNIT_SQUARE and rng.random() < ALIGNED
        angle = self.angle if is_aligned else rng.uniform(0, 2 * math.pi)
        stretch = MAX_STRETCH ** rng.uniform(-0.5, 0.5)
        cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
        turn = np.array(
            [[cos * stretch, sin * stretch], [-sin / stretch, cos / stretch]]
        )
        return corners @ turn + self._draw_centre(radius)

    def _draw_centre(self, radius=math.inf):
        """Where a leaf, a bundle or a block comes to lie; small leaves in clumps."""
        is_small = radius < self.side * SMALL_LEAF
        if self.clumps and is_small and self.rng.random() < IN_CLUMPS:
            centre, spread = self.clumps[self.rng.integers(len(self.clumps))]
            return centre + self.rng.normal(0, spread, 2)
        x, y = self.rng.random(2) * self.side
        return np.array([x, self.horizon + y * (1 - self.horizon / self.side)])

    def _bound(self, outline, margin):
        """The canvas's part `(left, top, right, bottom)` that a leaf touches."""
        least, most = outline.min(0) - margin, outline.max(0) + margin
        left, top = np.maximum(least, 0).astype(int).tolist()
        right, bottom = np.minimum(most + 2, self.side).astype(int).tolist()
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _fill(self, width, height, field=None):
        """A patch of one colour, or of a field's values mixing two colours."""
        if field is None:
            return Image.new("RGB", (width, height), self._choose_colour())
        patch = self._crop(field, width, height)
        ends = np.array([self._choose_colour(), self._choose_colour()], float)
        ends[1] = ends[0] + (ends[1] - ends[0]) * self.rng.choice(TEXTURE_STRENGTHS)
        palette = ends[0] + MIXTURE * (ends[1] - ends[0])
        patch.putpalette(palette.astype(np.uint8).tobytes())
        return patch.convert("RGB")

    def _crop(self, field, width, height):
        left = self.rng.integers(field.width - width + 1)
        top = self.rng.integers(field.height - height + 1)
        return field.crop((left, top, left + width, top + height))

    def _expose(self, picture):
        """Takes the photograph: uneven light, and grain."""
        field = self.fields[self.rng.integers(NUM_NOISES)]
        cells = field.resize((LIGHT_CELLS, LIGHT_CELLS), Image.Resampling.BOX)
        cells = np.asarray(cells, np.float32)
        cells = (cells - cells.min()) / max(1.0, float(np.ptp(cells)))
        cells = Image.fromarray(cells - 0.5)
        light = np.asarray(cells.resize(picture.size, Image.Resampling.BICUBIC))
        light = 1 + self.rng.uniform(0, MAX_UNEVENNESS) * light
        grain = self.rng.normal(0, self.rng.exponential(GRAIN), light.shape)
        levels = np.asarray(picture) * light[..., None] + grain[..., None]
        return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))

    def _shade(self, patch):
        """Lights a patch from one side: mixes it with its own darker self."""
        angle = self.rng.uniform(0, 360)
        shade = self.shades[self.rng.integers(len(self.shades))]
        shade = shade.rotate(angle, Image.Resampling.BILINEAR).crop(SHADE_MIDDLE)
        dark = patch.point([int(value * SHADOW) for value in range(256)] * 3)
        return Image.composite(patch, dark, shade.resize(patch.size))

    def _choose_colour(self):
        return self.colours[self.rng.integers(NUM_COLOURS)]

    def _choose_field(self):
        return self.fields[self.rng.integers(len(self.fields))]

    def _choose_clumps(self):
        """Centres and spreads in px of the places where small leaves gather."""
        if self.rng.random() > CLUMPED:
            return []
        count = self.rng.integers(1, MAX_CLUMPS + 1)
        centres = self.rng.random((count, 2)) * self.side
        spreads = self.rng.uniform(*CLUMP_SPREADS, count) * self.side
        return list(zip(centres, spreads, strict=True))

    def _choose_horizon(self):
        """Height in px of the sky above the leaves, where only clumps are; or 0."""
        is_sky = self.rng.random() < SKY_PICTURES
        return self.side * self.rng.uniform(*SKY_HEIGHTS) if is_sky else 0.0


def draw_leaves(size, seed):
    """Draws one dead-leaves picture.

    Papers: Lee, Mumford and Huang 2001; Achddou, Gousseau and Ladjal 2021.

    Args:
        size: int >= 16, side of the picture in px.
        seed: int >= 0 or sequence of them, such as `(seed, index)`; with `size` it
            determines the picture.

    Returns:
        uint8 array `(size, size, 3)`, RGB in [0, 255].

    Raises:
        ValueError: if `size` is less than 16.
    """
    _check_at_least("size", size, MIN_SIZE)
    return np.asarray(Painter(size, np.random.default_rng(seed)).paint())


def _build_colours(rng):
    """The colours of one picture, as tuples of ints: every luminance, related hues."""
    luminance = 255 * rng.beta(*LUMINANCE_SHAPE, POOL_SIZE)
    hue = rng.uniform(0, 2 * np.pi) + rng.normal(0, HUE_SPREAD, POOL_SIZE)
    chroma = rng.exponential(rng.uniform(*MEAN_CHROMAS), POOL_SIZE)
    # Where strong colours are rare, a network takes those of photographs for paler.
    chroma = np.minimum(chroma, MAX_CHROMA * np.minimum(luminance, 255 - luminance))
    blue, red = chroma * np.cos(hue), chroma * np.sin(hue)
    offsets = [1.402 * red, -0.344 * blue - 0.714 * red, 1.772 * blue]  # JPEG's YCbCr
    return _vary_colours(np.stack(offsets, 1) + luminance[:, None], NUM_COLOURS, rng)


def _vary_colours(pool, count, rng):
    """Draws colours from a pool `(n, 3)`, each a little lighter, darker or tinted."""
    colours = pool[rng.integers(len(pool), size=count)]
    lightness = rng.normal(0, LIGHTNESS_SPREAD, (count, 1))
    colours = colours + lightness + rng.normal(0, TINT_SPREAD, (count, 3))
    return [tuple(colour) for colour in np.clip(colours, 0, 255).astype(int).tolist()]


def _build_shades():
    """The ways in which light falls off, 64 px: from one side, from the middle."""
    return Image.linear_gradient("L").reduce(4), Image.radial_gradient("L").reduce(4)


def _build_outlines(rng):
    """A third each ellipses, rectangles, polygons, `(num_corners, 2)`, radius 1."""
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], 1)
    outlines = [circle] * NUM_OUTLINES + [UNIT_SQUARE] * NUM_OUTLINES
    for num_corners in rng.integers(3, 9, NUM_OUTLINES):
        turns = np.sort(rng.uniform(0, 2 * np.pi, num_corners))
        reach = rng.uniform(0.4, 1.3, num_corners)
        outlines.append(np.stack([np.cos(turns) * reach, np.sin(turns) * reach], 1))
    return outlines


def _build_fields(side, rng):
    """The textures of one picture, which say how to mix two colours (mode L)."""
    noises = _build_noises(side, rng)
    fields = noises + [_build_pattern(noises[0], rng) for _ in range(NUM_PATTERNS)]
    images = [
        Image.fromarray(np.clip(field, 0, 255).astype(np.uint8)) for field in fields
    ]
    return images + [_build_gravel(side, rng) for _ in range(NUM_GRAVELS)]


def _build_noises(side, rng):
    """Coloured noise of mean 128, stretched along a direction as wood and fur are."""
    white = _draw_white_spectrum(side, rng)
    noises = []
    for exponent in rng.uniform(*NOISE_EXPONENTS, NUM_NOISES).tolist():
        angle, stretch = rng.uniform(0, math.pi), float(rng.choice(STRETCHES))
        noise = _colour_noise(white, exponent, angle, stretch)
        noises.append(128 + noise * (float(rng.choice(CONTRASTS)) / float(noise.std())))
    return noises


def _build_coasts(side, rng):
    """Black and white masks (mode L) with ragged edges: noises above and below 0."""
    white = _draw_white_spectrum(side, rng)
    coasts = []
    for exponent in rng.uniform(*COAST_EXPONENTS, NUM_COASTS).tolist():
        noise = _colour_noise(white, exponent, lowest=COAST_ISLANDS)
        land = Image.fromarray(np.where(noise > 0, 255, 0).astype(np.uint8))
        coasts += [land, ImageChops.invert(land)]
    return coasts


def _draw_white_spectrum(side, rng):
    return np.fft.rfft2(rng.standard_normal((side, side), np.float32))


def _colour_noise(white, exponent, angle=0.0, stretch=1.0, lowest=1.0):
    """Gives white noise's spectrum an amplitude of 1 / frequency^exponent.

    Waves of fewer than `lowest` a side are no stronger; along `angle` (radians) the
    noise is `stretch` times longer.
    """
    side = len(white)
    vertical = np.fft.fftfreq(side).astype(np.float32)[:, None]
    horizontal = np.fft.rfftfreq(side).astype(np.float32)
    along = horizontal * math.cos(angle) + vertical * math.sin(angle)
    across = vertical * math.cos(angle) - horizontal * math.sin(angle)
    power = (along * stretch) ** 2 + across**2 + (lowest / side) ** 2
    return np.fft.irfft2(white * power ** (-exponent / 2), (side, side))


def _draw_power_law(least, most, count, rng):
    """Draws radii of density ~ r^-3, by inverting its integral."""
    part = rng.random(count)
    return (least**-2 - part * (least**-2 - most**-2)) ** -0.5


def _build_gravel(side, rng):
    """A texture (mode L) of small stones, blades or flakes: small dead leaves."""
    least = OVERSAMPLING * rng.uniform(*GRAVEL_RADII)
    area = side**2 / (OVERSAMPLING * DEFAULT_SIZE) ** 2
    most_stones = int(MAX_STONES * max(1, area))
    count = min(most_stones, int(side**2 / (STONE_GROUND * least**2)))
    radii = _draw_power_law(least, GRAVEL_RANGE * least, count, rng)
    stretch = MAX_STRETCH ** rng.uniform(0, 0.5)
    turns = np.linspace(0, 2 * np.pi, STONE_CORNERS, endpoint=False)
    turns = turns + rng.uniform(0, STONE_TURN, (count, 1))
    reach = radii[:, None] * rng.uniform(*STONE_REACH, (count, STONE_CORNERS))
    along, across = np.cos(turns) * reach * stretch, np.sin(turns) * reach / stretch
    spread = rng.choice(GRAVEL_SPREADS)
    angles = rng.uniform(0, math.pi) + rng.normal(0, spread, (count, 1))
    x, y = rng.random((2, count, 1)) * side
    x = x + along * np.cos(angles) - across * np.sin(angles)
    y = y + along * np.sin(angles) + across * np.cos(angles)
    values = rng.normal(128, rng.uniform(*GRAVEL_CONTRASTS), count)
    field = Image.new("L", (side, side), 128)
    pen = ImageDraw.Draw(field)
    corners = np.stack([x, y], 2).reshape(count, -1).tolist()
    levels = np.clip(values, 0, 255).astype(int).tolist()
    for outline, level in zip(corners, levels, strict=True):
        pen.polygon(outline, fill=level)
    return field


def _build_pattern(noise, rng):
    """Waves, stripes, checkers or a ramp in [0, 255], perhaps bent by a noise."""
    side = len(noise)
    limits = np.log((MIN_PERIOD * OVERSAMPLING, side / 4))
    angle, period = rng.uniform(0, math.pi), math.exp(rng.uniform(*limits))
    cos, sin = math.cos(angle), math.sin(angle)
    line = np.arange(side, dtype=np.float32) * (2 * math.pi / period)
    along = line * cos + line[:, None] * sin
    if rng.random() < BENT:
        along += noise * rng.uniform(0, MAX_BEND)
    kind = rng.choice(("wave", "stripes", "checkers", "ramp"))
    if kind == "wave":
        return 128 + 127 * np.sin(along)
    if kind == "stripes":
        return 255 * (np.sin(along) > rng.uniform(-0.8, 0.8))
    if kind == "checkers":
        across = line[:, None] * cos - line * sin
        return 255 * ((np.sin(along) > 0) ^ (np.sin(across) > 0))
    return 255 / np.ptp(along) * (along - along.min())


@functools.lru_cache
def _load_font(size):
    """The font that Pillow carries; `size` in px."""
    return ImageFont.load_default(size)


def write_dataset(
    folder, count=DEFAULT_COUNT, size=DEFAULT_SIZE, seed=0, workers=None, progress=None
):
    """Writes pictures `leaf-00000.png`, ...; those already there are kept.

    Picture i depends on `(size, seed, i)` and `RECIPE` alone, and a file appears once
    it is whole, so a run that was stopped goes on where it was. A picture of another
    size, seed or recipe is drawn again. Programs that call this with several workers
    need the usual guard `if __name__ == "__main__":`, because processes are spawned.

    Args:
        folder: path; made if missing.
        count: int >= 1, number of pictures.
        size: int >= 16, side of each in px.
        seed: int >= 0.
        workers: int >= 1, number of processes; `None`: one for each core.
        progress: function called with `(number_there, count)` after each picture.

    Returns:
        Number of pictures written, without those that were there.

    Raises:
        ValueError: if a number is below its least value.
        OSError: if `folder` is a file or cannot be written to.
    """
    _check_at_least("count", count, 1)
    _check_at_least("size", size, MIN_SIZE)
    _check_at_least("seed", seed, 0)
    _check_at_least("workers", 1 if workers is None else workers, 1)
    folder = _make_folder(folder)
    tasks = [(folder / f"leaf-{i:05d}.png", size, (seed, i)) for i in range(count)]
    missing = [task for task in tasks if not _is_whole(*task)]
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if workers <= 1:
        _report(map(_write_picture, missing), count - len(missing), count, progress)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _start_worker) as pool:
            with _interrupts_held():  # the workers start here
                done = pool.map(_write_picture, missing)
            _report(done, count - len(missing), count, progress)
    return len(missing)


@contextlib.contextmanager
def _interrupts_held():
    """Puts off Ctrl-C; processes started meanwhile never see it, not even at once."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _start_worker():
    """Leaves Ctrl-C to the parent, which lets each worker end its picture."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends a worker whose parent was killed: it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _report(done, num_there, count, progress):
    """Waits for pictures and tells `progress` of each."""
    for number, _ in enumerate(done, num_there + 1):
        if progress is not None:
            progress(number, count)


def _write_picture(task):
    """Draws one picture and writes it at once, so that no part is ever seen."""
    path, size, seed = task
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Source", _describe(size, seed))
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        image = Image.fromarray(draw_leaves(size, seed))
        image.save(file, "png", pnginfo=notes, compress_level=PNG_COMPRESS_LEVEL)
    os.replace(partial, path)


def _is_whole(path, size, seed):
    """Tells whether a picture is there, whole, and of this size, seed and recipe."""
    try:
        with Image.open(path) as image:
            same = image.info.get("Source") == _describe(size, seed)
            image.verify()
    except (OSError, SyntaxError):  # Pillow's words for missing and for damaged
        return False
    return same


def _describe(size, seed):
    """The call that draws a picture, and the recipe, kept in its file."""
    return f"sample_data.draw_leaves({size}, {tuple(seed)}), recipe {RECIPE}"


def write_sample_dataset(datasets_folder="datasets"):
    """Writes the small dataset of the demo, in seconds; once: later calls return.

    Test images are leaves that are not trained on, and matplotlib's photograph of
    Grace Hopper, which is in the public domain.

    Args:
        datasets_folder: path; gets the folders `sample` and `sample_test`.

    Returns:
        `SampleFolders(training, test)`.

    Raises:
        OSError: if a folder is a file or cannot be written to.
    """
    import matplotlib.cbook

    folders = SampleFolders(
        Path(datasets_folder) / "sample", Path(datasets_folder) / "sample_test"
    )
    # One process each: spawning some would import the caller's TensorFlow in each.
    write_dataset(folders.training, SAMPLE_COUNT, SAMPLE_SIZE, SAMPLE_SEED, workers=1)
    write_dataset(folders.test, NUM_TEST_LEAVES, SAMPLE_SIZE, TEST_SEED, workers=1)
    photograph = folders.test / PHOTOGRAPH
    if not photograph.exists():
        partial = photograph.with_suffix(".tmp")
        source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
        shutil.copyfile(source, partial)
        os.replace(partial, photograph)
    return folders


def _make_folder(folder):
    """Makes a folder, with a plain word where that is impossible."""
    folder = Path(folder)
    try:
        command_line.make_writable(folder)
    except OSError as error:
        raise type(error)(
            f"Expected a folder to write pictures to, but {folder} cannot be one: "
            f"{error.strerror}. Name another folder."
        ) from error
    return folder


def _check_at_least(name, value, least):
    """Refuses a number that is too small."""
    if value < least:
        raise ValueError(
            f"Expected {name} of at least {least}, got {value}. Pass a larger {name}."
        )


class ProgressLine:
    """Shows how far the work is: a line redrawn on a terminal, else one every 10 %."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.shown = 0

    def __call__(self, number, count):
        """Shows that `number` of `count` pictures are there."""
        line = f"{number} of {count} pictures"
        if self.stream.isatty():
            end = "\n" if number == count else ""
            print(f"\r{line}", end=end, file=self.stream, flush=True)
        elif number == count or number * 10 // count > self.shown:
            print(line, file=self.stream, flush=True)
        self.shown = number * 10 // count


FLAGS = {
    "pictures": (
        ("--count", command_line.positive_int, "how many"),
        ("--size", command_line.positive_int, "side of each, px, at least 16"),
        ("--seed", command_line.non_negative_int, "another gives other pictures"),
        ("--output", "FOLDER", "where they go"),
        (
            "--workers",
            command_line.positive_int,
            "number of processes [one for each core]",
        ),
    ),
}
DEFAULTS = {
    "count": DEFAULT_COUNT,
    "size": DEFAULT_SIZE,
    "seed": 0,
    "output": "datasets/leaves",
}


def parse_args(argv=None):
    """Reads the command line.

    Args:
        argv: list of str, or `None` for the process's own.

    Returns:
        `argparse.Namespace`.
    """
    parser = command_line.ArgumentParser(
        prog="sample_data.py",
        usage="python sample_data.py [flags]",
        description="Draws training images that nobody owns: dead leaves.",
    )
    command_line.add_flags(parser, FLAGS, DEFAULTS)
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args(argv)


def main(argv=None):
    """Writes a dataset; the command line's entry.

    Args:
        argv: list of str, or `None` for the process's own.

    Returns:
        Exit code: 0, 1 if a worker was killed, 2 for a mistake of the user's, 130
        when interrupted.
    """
    args = parse_args(argv)
    try:
        number = write_dataset(
            args.output, args.count, args.size, args.seed, args.workers, ProgressLine()
        )
    except (ValueError, OSError) as error:
        print(f"sample_data.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_USAGE
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        return command_line.EXIT_SIGNAL + 2
    except BrokenProcessPool:
        print(
            "sample_data.py: a worker was ended from outside, perhaps for want of "
            "memory. Run the same command again with a smaller --workers.",
            file=sys.stderr,
        )
        return command_line.EXIT_FAILED
    print(f"{number} new pictures of {args.size} px in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
