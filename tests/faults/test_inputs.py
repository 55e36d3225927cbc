"""Files that a user writes, at random; and kernels that would round in silence."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgdas import kernels
from msgdas.engine.cli import parser
from msgdas.engine.commands.configuration import config_of
from msgdas.engine.errors import ConfigError
from msgdas.engine.settings import config

NAMES = st.sampled_from([*config.KEYS.fields, "recipe", "kk", "a.b", "'x'", "[k]"])
VALUES = st.sampled_from(
    [
        "2",
        "-1",
        "0",
        "1e400",
        "nan",
        "true",
        "'msg'",
        "''",
        "[]",
        "{}",
        "2024-01-01",
        "9" * 400,
        '"\\ud800"',
        "0x7f",
        "",
    ]
)
LINES = st.lists(st.tuples(NAMES, VALUES).map(" = ".join), max_size=4).map("\n".join)


@settings(max_examples=200)
@given(
    st.one_of(LINES.map(str.encode), st.binary(max_size=40), LINES.map(lambda text: b"\xef\xbb\xbf" + text.encode()))
)
@example(b"k = 2\nk = 3")
@example(b"[" * 5000)
@example(b"k = " + b"9" * 5000)
@example(b"k = " + b"[" * 5000 + b"]" * 5000)
def test_fault_47_any_file_is_a_configuration_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(content)
    said = ""
    try:
        assert config_of(parser().parse_args(["search", "--config", str(path)]))
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said and (not said or "Next: " in said)


def test_fault_33_no_kernel_multiplies_in_tf32():
    """Triton's `dot` takes TF32 for float32 unless it is told otherwise."""
    calls = [
        call
        for path in Path(kernels.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "tl.dot"
    ]
    assert calls
    for call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("input_precision") == "'ieee'", ast.unparse(call)
