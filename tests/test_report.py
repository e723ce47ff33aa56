"""The page: complete, escaped, small, and true to the timelines it draws."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from planner.timeline import Event, Timeline
from traces.report import html

PNG = b"\x89PNG\r\n\x1a\n not really"


def run(source, steps=50, segments=35, own_ns=(400_000, 700_000)):
    """Two ranks: `segments` segments per step, a bundle gathered after every fifth, and both meet at its end."""
    events = []
    t = [0, 0]
    for s in range(steps):
        for rank in (0, 1):
            for k in range(segments):
                start, t[rank] = t[rank], t[rank] + own_ns[rank]
                events.append(Event(rank, "compute", f"C {k}-{k + 1} s{s}", s, start, t[rank]))
                if k % 5 == 4:
                    end = t[rank] + 900_000
                    events.append(Event(rank, "context", f"G bundle{k // 5} [0,1]", s, t[rank], end, 4096, t[rank]))
                    events.append(Event(rank, "wait", f"W bundle{k // 5}", s, t[rank], t[rank] + 1000))
                    t[rank] += 1000
        meet = max(t)
        events += [Event(rank, "wait", "W latent", s, t[rank], meet) for rank in (0, 1)]
        t = [meet, meet]
    return Timeline(source, "abc", ("cpu0", "cpu1"), events)


class Page(HTMLParser):
    """Tags, the text outside scripts and styles, and the embedded data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.scripts = [], [], [], []
        self.feed(text)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        else:
            self.words.append(data.strip())


def spans(track):
    """(start, end, kind, step, count) in units, decoded as the page's script does."""
    flat, at, out = track["spans"], 0, []
    for gap, length, kind, step, count in zip(*[iter(flat)] * 5, strict=True):
        out.append((at + gap, at + gap + length, kind, step, count))
        at += gap + length
    return out


def test_a_small_run_is_drawn_event_by_event():
    predicted, measured = run("simulated", steps=2, segments=5), run("measured", 2, 5, (400_000, 800_000))
    (chart,) = Page(html("demo", [], [("equal", predicted, measured)])).data["charts"]
    assert chart["summary"] == "predicted 0.007901 s, measured 0.008901 s, error -11.2%"
    tracks = [(t["rank"], t["which"], t["lane"]) for t in chart["tracks"]]
    lanes = ("compute", "wait", "context")
    assert tracks == [(r, which, lane) for r in (0, 1) for which in ("predicted", "measured") for lane in lanes]
    first = spans(chart["tracks"][0])
    assert len(first) == 10 and all(count == 1 for *_, count in first)
    for start, end, kind, step, _ in first[5:6]:  # the first segment of the second step
        assert chart["kinds"][kind] == "C 0-1" and step == 1
        assert start * chart["unit"] == pytest.approx(3.501e-3, abs=2e-8)
        assert (end - start) * chart["unit"] == pytest.approx(0.4e-3, abs=2e-8)


def test_a_long_run_fits_and_keeps_its_shares():
    predicted, measured = run("simulated"), run("measured", own_ns=(410_000, 720_000))
    page = html("demo", [{"scheme": "equal"}], [("equal", predicted, measured)])
    assert len(page) < 300_000
    crowd = [(str(i), predicted, measured) for i in range(5)]
    page = html("demo", [], crowd)
    assert len(page) < 300_000
    (chart, *_) = Page(page).data["charts"]
    for track in chart["tracks"]:
        timeline = predicted if track["which"] == "predicted" else measured
        own = [e for e in timeline.events if (e.rank, e.lane) == (track["rank"], track["lane"])]
        drawn = spans(track)
        assert sum(count for *_, count in drawn) == len(own)
        assert len(drawn) < len(own) or len(own) <= 400
        if track["lane"] == "compute":
            seconds = sum(end - start for start, end, *_ in drawn) * chart["unit"]
            assert seconds == pytest.approx(sum(e.end_ns - e.start_ns for e in own) / 1e9, rel=2e-3)


def test_the_table_is_readable():
    rows = [
        {"scheme": "single", "predicted_seconds": 2.98765, "error": None, "psnr_db": float("inf"), "moved_bytes": 0},
        {"scheme": "stadi", "predicted_seconds": 1.5, "error": -0.0123, "psnr_db": 34.56, "moved_bytes": 1234567},
        {"scheme": "late", "note": True},
    ]
    words = [word for word in Page(html("demo", rows, [])).words if word]
    table = words[words.index("scheme") : words.index("scheme") + 24]
    assert table == [
        *("scheme", "predicted, s", "error", "PSNR, dB", "moved, bytes", "note"),
        *("single", "2.988", "-", "infinite", "0", "-"),
        *("stadi", "1.5", "-1.2%", "34.6", "1,234,567", "-"),
        *("late", "-", "-", "-", "-", "True"),
    ]


def test_everything_from_outside_is_escaped():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>@@DATA@@\u2028"
    events = [Event(0, "compute", evil, 0, 0, 10), Event(0, evil, evil, 0, 0, 10, 1)]
    timeline = Timeline(evil, evil, (evil,), events)
    page = Page(html(evil, [{evil: evil}], [(evil, timeline, None)], [(evil, PNG)]))
    assert page.tags.count("script") == 2 and page.tags.count("img") == 1
    assert ("alt", evil) in page.attributes
    (chart,) = page.data["charts"]
    assert chart["title"] == evil and chart["kinds"] == [evil] and chart["tracks"][0]["device"] == evil


def test_the_page_loads_nothing_and_embeds_its_images():
    page = html("demo", [], [("one", run("simulated", 2, 5), None)], [("a & b", PNG)])
    source = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert f'<img alt="a &amp; b" src="{source}">' in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@@[A-Z]+@@", page)
    assert "default-src 'none'" in page
    assert not [value for name, value in Page(page).attributes if name in ("src", "href") and value != source]


def test_nothing_to_show():
    page = Page(html("demo", [], [("empty", Timeline("simulated", "d", ("a",), []), None)]))
    assert page.data["charts"][0]["tracks"] == []
    assert Page(html("demo", [], [])).data["charts"] == []
