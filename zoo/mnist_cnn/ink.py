"""Where the ink is: from a picture of a digit on anything to a map of its strokes.

Paper is what is common at the border and changes slowly; ink is what differs from it, in whichever direction and
colour. Arrays here are (height, width, channels) or (height, width), float32, 0 black to 1 white; ink is 0 to 1.
"""

from __future__ import annotations

import numpy as np

from zoo.core.errors import DataError
from zoo.mnist_cnn.pixels import fit, label, mean, otsu, resize, ring, sweep

COARSE = 96  # side at which the background is estimated: strokes and noise vanish in it, shading stays
FINE = 128  # side at which strokes are joined into parts: a gap of 1/128 of the picture does not part a chalk line
WINDOW = 0.22  # of the longer side: wider than strokes, narrower than shadows
DARKEST = 0.05  # of the paper, so that noise in the black is not blown up
FAINTEST = 2.5 / 255  # less contrast than this is rounding
SMOOTHED = 85  # pixels: smaller pictures have strokes of a pixel or two, and are not smoothed
CLEAR = 8  # below as many standard deviations of the paper, ink is smoothed: film grain, a dark room
NOISE = 3.5  # ink must stand out of the paper by as many of its standard deviations
EVEN = 0.05  # an even background is preferred unless an uneven one explains this much more of the variance
AT_BORDER = 0.05  # what reaches the border (edges of the sheet, ruled lines, fingers) counts this much as ink
PART = 0.08  # a part with less of the main part's ink is a speck; the bar of a 5 has more


def find_ink(picture: np.ndarray) -> np.ndarray:
    """Map (h, w) of the digit's strokes in a picture (h, w, channels), 1 where it is all ink, else 0.

    Raises DataError (why, without a file name) if nothing stands out of the background.
    """
    ink = _stand_out(picture)
    cut, full, noise = _levels(ink)
    for _ in range(2 if max(ink.shape) > SMOOTHED else 0):
        if full > CLEAR * noise:
            break
        ink = mean(ink, 3)
        cut, full, noise = _levels(ink)
    if full < max(FAINTEST, NOISE * noise):
        raise _blank()
    none = min(3 * noise, 0.5 * cut)
    ink = np.clip((ink - none) / (full - none), 0, 1)
    return (ink * _digit(ink)).astype(np.float32)


def _blank() -> DataError:
    return DataError(
        "",
        "the picture is blank: nothing in it stands out of its background",
        "Give a picture of one digit, dark on light or light on dark.",
    )


def _stand_out(picture: np.ndarray) -> np.ndarray:
    """(h, w): how far each pixel is from the paper, in the direction in which the ink is.

    The background is taken as even or as uneven, whichever parts ink from paper more clearly.
    """
    height, width, _ = picture.shape
    coarse = resize(picture, fit(picture, COARSE))
    even = np.broadcast_to(_even_background(coarse), coarse.shape)
    window = max(3, round(WINDOW * max(coarse.shape)) | 1)
    local = coarse.mean(axis=-1) - mean(coarse.mean(axis=-1), window)
    rises = bool(np.mean(local**3) > 0)  # strokes are few: they are the longer tail of what deviates
    slope = np.maximum(_surface(coarse), 0.02)
    uneven = [_envelope(coarse, window, rises), slope * _envelope(coarse / slope, window, rises)]

    differences = [coarse - even, *(_less(coarse, background) for background in uneven)]
    clearness = [_clearness(_toward(difference)) for difference in differences]
    clearness[0] += EVEN
    best = int(np.argmax(clearness))
    if best == 0:
        return _toward(picture - even[0, 0])
    ink = _toward(_less(picture, resize(uneven[best - 1], (height, width))))
    return ink - np.median(ink[ink <= otsu(ink)[0]])  # the envelope of a noisy sheet lies above it


def _clearness(ink: np.ndarray) -> float:
    """How well ink and paper part: the variance that two levels explain, less the share of the border that is ink."""
    cut, explained = otsu(ink)
    return explained - float(np.mean((ink > cut)[ring(ink)]))


def _levels(ink: np.ndarray) -> tuple[float, float, float]:
    """(what parts ink from paper, what full ink is, the standard deviation of the paper)"""
    cut, _ = otsu(ink)
    dark, paper = ink[ink > cut], ink[ink <= cut]
    if not dark.size:
        return 0.0, 0.0, 0.0
    full = float(np.percentile(dark, 75))  # MNIST's strokes are flat on top: 253 of 255
    return cut, full, 1.4826 * float(np.median(np.abs(paper - np.median(paper))))


def _toward(difference: np.ndarray) -> np.ndarray:
    """(h, w, channels) -> (h, w): the part of the difference in the direction of the strongest ones."""
    length = np.sqrt(np.sum(difference * difference, axis=-1))
    ink = difference[length >= 0.7 * np.percentile(length, 99.8)].mean(axis=0)
    return difference @ (ink / max(float(np.linalg.norm(ink)), 1e-9)).astype(np.float32)


def _less(picture: np.ndarray, background: np.ndarray) -> np.ndarray:
    """What ink adds or takes, as a share of the light on the paper: a shadow dims both alike."""
    return (picture - background) / np.maximum(background, DARKEST)


def _even_background(coarse: np.ndarray) -> np.ndarray:
    """The colour (channels,) of the border."""
    border = coarse[ring(coarse)]
    paper = np.median(border, axis=0)

    # A picture cut close may have more ink than paper on its border, but strokes leave the corners free.
    least, most = np.percentile(coarse, (0.5, 99.5), axis=(0, 1))
    channel = int(np.argmax(most - least))
    contrast = float((most - least)[channel])
    corners = coarse[[0, 0, -1, -1], [0, -1, 0, -1]]
    middle = corners[np.argsort(corners[:, channel])[1:3]]  # alike if three of the four are
    alike = abs(float(middle[0, channel] - middle[1, channel])) < 0.2 * contrast
    mixed = np.mean(np.abs(border - paper)[:, channel] < 0.3 * contrast) < 0.8
    return (middle.mean(axis=0) if alike and mixed else paper).astype(np.float32)


def _envelope(coarse: np.ndarray, window: int, below: bool) -> np.ndarray:
    """The smooth surface that touches the picture (h, w, channels) from above, or below, and passes over strokes."""
    for widen in (np.minimum, np.maximum) if below else (np.maximum, np.minimum):
        coarse = sweep(widen, coarse, window)
    return mean(coarse, 3)


def _surface(coarse: np.ndarray) -> np.ndarray:
    """The quadratic surface (h, w, channels) nearest to most pixels: least squares, outliers weigh less each round."""
    height, width, channels = coarse.shape
    y, x = (axis.ravel() for axis in np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    fitted = []
    for values in coarse.reshape(-1, channels).T.astype(np.float64):
        weight = np.ones_like(x)
        for _ in range(10):
            weighed = terms * weight[:, None]
            factors = np.linalg.lstsq(weighed.T @ terms, weighed.T @ values, rcond=None)[0]
            residual = np.abs(values - terms @ factors)
            scale = max(2 * float(np.median(residual)), 1e-4)
            weight = 1 / (1 + (residual / scale) ** 2)
        fitted.append(terms @ factors)
    return np.stack(fitted, axis=-1).reshape(coarse.shape).astype(np.float32)


def _digit(ink: np.ndarray) -> np.ndarray:
    """Mask (h, w) of the parts of the ink that make the digit: not specks, not what comes in from the border."""
    height, width = ink.shape
    step = -(-max(height, width) // FINE)
    padded = np.pad(ink, ((0, -height % step), (0, -width % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    mass, peak = blocks.sum(axis=(1, 3)), blocks.max(axis=(1, 3))
    parts = label(peak > 0.3)
    count = int(parts.max()) + 1
    score = np.bincount(parts.ravel(), mass.ravel(), count)
    score[0] = 0
    at_border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    score[at_border] *= AT_BORDER
    for part in at_border:
        here = parts == part
        long = max(here.any(axis=0).mean(), here.any(axis=1).mean()) > 0.5
        if long and mass[here & ring(mass)].sum() > 0.5 * mass[here].sum():
            score[part] = 0  # a band along a side, where no background fits
    best = int(np.argmax(score))
    if not score[best]:
        raise _blank()
    if best not in at_border:
        score[at_border] = 0
    kept = (score >= PART * score[best])[parts] & (parts > 0)
    kept = sweep(np.maximum, kept, 2 * max(1, round(2 / step)) + 1)  # the soft edge of the strokes, two pixels
    return np.repeat(np.repeat(kept, step, axis=0), step, axis=1)[:height, :width]
