import json

from zoo.whisper.segment import Segment, Word


def test_a_segment_comes_back_from_json_as_it_was():
    plain = Segment(0.5, 2.25, " Hello.", [50364, 1, 2, 50464], 0.2, -0.25, 1.125, 0.5)
    timed = Segment(0.5, 2.25, " Hello.", words=[Word(" Hello.", 0.5, 1.0, 0.75)])
    for segment in (plain, timed):
        assert Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment
    assert "words" not in plain.to_json() and timed.to_json()["words"][0]["word"] == " Hello."
