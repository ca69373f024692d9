"""Line protocol escaping by the InfluxDB reference, in both directions."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import LineProtocolError
from virtpilot.lineprotocol import encode, encode_lines, parse, parse_line
from virtpilot.model import Sample

quick = settings(derandomize=True, deadline=None, max_examples=examples(300))

# What a name or tag value can be: any text without a line feed that does not end in a backslash.
nasty = st.text(
    st.one_of(
        st.sampled_from(", =\\\"#'\t[]u%\x01\x02"), st.characters(exclude_categories=["Cs"], exclude_characters="\n")
    ),
    min_size=1,
)
names = nasty.filter(lambda text: not text.endswith("\\"))
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-300]),
)
samples = st.builds(
    Sample,
    measurement=names.filter(lambda text: not text.startswith("#")),
    tags=st.dictionaries(names, names, max_size=4),
    fields=st.dictionaries(names, numbers, min_size=1, max_size=4),
    time_ns=st.integers(-(2**63), 2**63 - 1),
)

GOOD = [
    ("m f=1 5", Sample("m", {}, {"f": 1.0}, 5)),
    ("m,a=b f=42i -5", Sample("m", {"a": "b"}, {"f": 42}, -5)),
    ("m f=18446744073709551615u 5", Sample("m", {}, {"f": 2**64 - 1}, 5)),
    ("m f=-1.234456e+78,g=1E3,h=.5,i=3. 5", Sample("m", {}, {"f": -1.234456e78, "g": 1000.0, "h": 0.5, "i": 3.0}, 5)),
    ("m a=t,b=T,c=true,d=True,e=TRUE 5", Sample("m", {}, dict.fromkeys("abcde", 1), 5)),
    ("m a=f,b=F,c=false,d=False,e=FALSE 5", Sample("m", {}, dict.fromkeys("abcde", 0), 5)),
    (r"my\ mea\,s=ure f=1 5", Sample("my mea,s=ure", {}, {"f": 1.0}, 5)),
    (r"m,t\ a\,g\=k=v\ a\,l\=u f\ i\,e\=ld=1 5", Sample("m", {"t a,g=k": "v a,l=u"}, {"f i,e=ld": 1.0}, 5)),
    # A backslash before anything else is itself; of two the second may still escape.
    (r"m\x,a\b=c\\d f=1 5", Sample("m\\x", {"a\\b": "c\\\\d"}, {"f": 1.0}, 5)),
    (r"m,a=b\\,c f=1 5", Sample("m", {"a": "b\\,c"}, {"f": 1.0}, 5)),
    (r"m\= f=1 5", Sample("m\\=", {}, {"f": 1.0}, 5)),
    ('m,a="b" f=1 5', Sample("m", {"a": '"b"'}, {"f": 1.0}, 5)),
    ('m s="x, y=\\"z\\\\",f=1 5', Sample("m", {}, {"f": 1.0}, 5)),
    ('m f=1,s="" 5', Sample("m", {}, {"f": 1.0}, 5)),
    ('m s="two\nlines",f=1 5', Sample("m", {}, {"f": 1.0}, 5)),
    ("m,ü=ö f=1 5", Sample("m", {"ü": "ö"}, {"f": 1.0}, 5)),
    ("  m   f=1   5  ", Sample("m", {}, {"f": 1.0}, 5)),
    ("m f=1 5\r", Sample("m", {}, {"f": 1.0}, 5)),
]

BAD = [
    ("m f=1", "timestamp"),
    ("m f=1 ", "timestamp"),
    ("m f=1 5s", "timestamp"),
    ("m f=1 5.0", "timestamp"),
    ("m f=1 9223372036854775808", "timestamp"),
    ("m f=1 1_0", "timestamp"),
    ("m f=1 ٣", "timestamp"),
    ("m 5", "="),
    ("m", "fields"),
    (",a=b f=1 5", "measurement"),
    ("m, f=1 5", "tag key"),
    ("m,a f=1 5", "="),
    ("m,a= f=1 5", "value for tag"),
    ("m,=b f=1 5", "tag key"),
    ("m,a=b,a=c f=1 5", "twice"),
    ("m f=1,f=2 5", "twice"),
    ("m f=,g=1 5", "value for field"),
    ("m f=1, 5", "field key"),
    ("m =1 5", "field key"),
    ("m f=nan 5", "no number"),
    ("m f=inf 5", "no number"),
    ("m f=1e999 5", "no number"),
    ("m f=0x10 5", "no number"),
    ("m f=1_000 5", "no number"),
    ("m f=\t1 5", "no number"),
    ("m f=yes 5", "no number"),
    ("m f=1.5i 5", "integer"),
    ("m f=9223372036854775808i 5", "integer"),
    ("m f=-1u 5", "no number"),
    ("m f=18446744073709551616u 5", "no number"),
    ('m f="open 5', "not closed"),
    ('m f="x"y 5', "fields|timestamp"),
    ("m,a=b\\ f=1 5", "fields"),
    ("m " + ",".join(f"f{number}=1" for number in range(1001)) + " 5", "more than 1000"),
    ("m" + "".join(f",t{number}=1" for number in range(1001)) + " f=1 5", "more than 1000"),
    ("m,a=" + "x" * 70_000 + " f=1 5", "characters"),
]


@pytest.mark.parametrize(("text", "sample"), GOOD)
def test_a_good_line_is_read(text: str, sample: Sample) -> None:
    assert parse_line(text) == sample


@pytest.mark.parametrize(("text", "reason"), BAD, ids=[text[:30] for text, _ in BAD])
def test_a_bad_line_is_told(text: str, reason: str) -> None:
    with pytest.raises(LineProtocolError, match=reason):
        parse_line(text)


@pytest.mark.parametrize(("text", "_reason"), BAD, ids=[text[:30] for text, _ in BAD])
def test_a_bad_line_never_stops_the_rest(text: str, _reason: str) -> None:
    parsed = parse(f"# a comment\nbefore f=1 1\n\n{text}\nafter f=1 2\n".encode())
    assert [sample.measurement for sample in parsed.samples] == ["before", "after"]
    (bad,) = parsed.bad
    assert bad.number == 4
    assert bad.text == text[:200]
    assert bad.reason


def test_a_line_that_is_no_utf8_is_told_and_the_rest_is_read() -> None:
    parsed = parse("vör f=1 1\n".encode() + b"m,a=\xff\xfe f=1 2\n" + b"nach f=1 3\n")
    assert [sample.measurement for sample in parsed.samples] == ["vör", "nach"]
    assert [(bad.number, bad.reason) for bad in parsed.bad] == [(2, "not UTF-8")]
    assert parsed.bad[0].text.encode()


def test_a_line_of_strings_alone_is_no_sample_and_no_mistake() -> None:
    parsed = parse(b'm s="x" 5\n')
    assert (parsed.samples, parsed.bad) == ([], [])
    with pytest.raises(LineProtocolError, match="numeric"):
        parse_line('m s="x" 5')


@quick
@given(samples)
@example(Sample("m", {"a": "b\\,c", "k": "\\ "}, {"f\\=": 1}, 0))
@example(Sample(" m", {" ": "="}, {",": 1}, 0))
def test_what_is_encoded_is_read_back(sample: Sample) -> None:
    line = encode(sample)
    assert "\n" not in line
    back = parse_line(line)
    assert back == sample
    assert [type(value) for value in back.fields.values()] == [type(value) for value in sample.fields.values()]


def test_tags_are_sorted_and_empty_ones_left_out() -> None:
    assert encode(Sample("m", {"b": "2", "a": "1", "c": ""}, {"f": 1, "e": 0.1}, 7)) == "m,a=1,b=2 f=1i,e=0.1 7"


@pytest.mark.parametrize(
    "sample",
    [
        Sample("m", {}, {}, 0),
        Sample("", {}, {"f": 1}, 0),
        Sample("#m", {}, {"f": 1}, 0),
        Sample("m\\", {}, {"f": 1}, 0),
        Sample("m\nn", {}, {"f": 1}, 0),
        Sample("m", {"": "x"}, {"f": 1}, 0),
        Sample("m", {"a\\": "x"}, {"f": 1}, 0),
        Sample("m", {"a": "x\\"}, {"f": 1}, 0),
        Sample("m", {"a": "x\ny"}, {"f": 1}, 0),
        Sample("m", {"a": "\ud800"}, {"f": 1}, 0),
        Sample("m", {}, {"": 1}, 0),
        Sample("m", {}, {"f": math.nan}, 0),
        Sample("m", {}, {"f": -math.inf}, 0),
        Sample("m", {}, {"f": 2**64}, 0),
        Sample("m", {}, {"f": -(2**63) - 1}, 0),
        Sample("m", {}, {"f": 1}, 2**63),
    ],
)
def test_what_a_line_cannot_hold_is_refused(sample: Sample) -> None:
    with pytest.raises(LineProtocolError):
        encode(sample)


def test_one_bad_item_costs_neither_its_sample_nor_the_others() -> None:
    lines = encode_lines(
        [
            Sample("m", {"good": "1", "bad": "x\\"}, {"f": 1, "g": math.nan}, 1),
            Sample("m", {}, {"g": math.inf}, 2),
            Sample("m", {"ü": "ü"}, {"f": 2}, 3),
        ]
    )
    assert lines.decode() == "m,good=1 f=1i 1\nm,ü=ü f=2i 3\n"


def test_no_samples_are_no_bytes() -> None:
    assert encode_lines([]) == b""
    assert parse(b"").samples == []
