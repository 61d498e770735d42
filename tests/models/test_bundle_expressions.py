"""Expressions of bundles are worked out as Python would, and nothing else is run."""

import math

import pytest

from microtome.models.bundles.declared import Declared
from microtome.models.bundles.expressions import MOST, UnknownError, evaluate

CONFIG = {
    "displayable_configs": {"highres": True, "overlap": 0.25},
    "sizes": [256, 164],
    "names": {"spleen": 1, "background": 0},
    "first": [{"_target_": "LoadImaged"}],
    "last": [{"_target_": "EnsureTyped", "dtype": "$torch.float32"}],
    "key": "image",
    "made": {"_target_": "UNet"},
    "unknown": "$open('/etc/passwd').read()",
    "half": [1, "@unknown"],
    "round": "@about",
    "about": "$@round",
    "spacing": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
}


def plain(text, **more):
    return Declared({**CONFIG, **more}, {}, {}).plain(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$[1.5, 1.5, 2.0] if @displayable_configs#highres else [3.0, 3.0, 3.0]", [1.5, 1.5, 2.0]),
        ("$'model.pt' if not @displayable_configs::highres else 'low' + '.pt'", "low.pt"),
        ("@spacing", [1.5, 1.5, 1.5]),
        ("$len(@names) + 1", 3),
        ("$1.0 - float(@sizes#1) / float(@sizes#0)", 1 - 164 / 256),
        ("$((@sizes[0] - @sizes[1]) // 2,) * 4", (46,) * 4),
        ("$@first + @last", [{"_target_": "LoadImaged"}, {"_target_": "EnsureTyped", "dtype": "float32"}]),
        ("$@key + '_meta_dict'", "image_meta_dict"),
        ("$not @displayable_configs#highres or 3 > 2 > 1 and 'a' in 'abc'", True),
        ("$max(@sizes) % 7 - min(3, 4) * -2", 256 % 7 + 6),
        ("$@sizes[::-1]", [164, 256]),
        ("$round(abs(-2.5) * 3)", 8),
        ("$None", None),
        ("$monai.utils.CommonKeys.IMAGE", "image"),
        ("$np.pi / 8", math.pi / 8),
        ("$torch.int64", "int64"),
        ("$@half", [1, CONFIG["unknown"]]),
        ("$len(@half)", 2),
        ("$list(@first)", [{"_target_": "LoadImaged"}]),
    ],
)
def test_what_expressions_come_to(text, value):
    assert plain(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "$open('/etc/passwd')",
        "$__import__('os').system('true')",
        "$(lambda: 1)()",
        "$[i for i in @sizes]",
        "$@key.upper()",
        "$@made.to(@key)",
        "$@nowhere + 1",
        "$@unknown + 'x'",
        "$1 if @half[1] == 1 else 2",
        "$max(@half)",
        "$len(@made)",
        "$1 if @made else 2",
        "$2 ** 3",
        "$'%s' % @key",
        "$'a' * 99999999999",
        "$99999999999 * [0]",
        "$f'{@key}'",
        "$1 / 0",
        "$@sizes[7]",
        "$int('x')",
        "$1 +",
        "$exec('1')",
        "$str(b'x', encoding='utf8')",
        "$" + "(" * 400 + "1" + ")" * 400,
        "$" + "-" * 5000 + "1",
        "@round",
        "$@round + 1",
    ],
)
def test_everything_else_is_left_as_it_stands(text):
    assert plain(text) in (text, *CONFIG.values())


def test_no_text_grows_without_end():
    doubled = {f"a{n}": f"$@a{n - 1} + @a{n - 1}" for n in range(1, 60)}
    assert len(plain("@a4", a0="x" * 600, **doubled)) == 9600
    assert plain("$@a9", a0="x" * 600, **doubled).startswith("$")
    with pytest.raises(UnknownError):
        evaluate(" + ".join(["'" + "x" * 100 + "'"] * 200), lambda name: name)
    assert MOST < 20_000


def test_only_pure_names_are_called():
    ran = []
    with pytest.raises(UnknownError):
        evaluate("f(1)", ran.append)
    assert ran == []
