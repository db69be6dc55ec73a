"""What a training tells where no bar can be drawn, as in a log."""

from aim_mlx.cli import reporter
from aim_mlx.cli.reporter import Reporter


def test_a_long_silence_ends_with_a_line_of_how_far_it_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])
    with Reporter(as_json=False) as told:
        for second in range(0, 90, 10):
            now[0] = float(second)
            if second == 50:
                told.noted("something")  # starts the silence again
            told.advanced("computing", second, 1200)
    assert capsys.readouterr().err.splitlines() == [
        "computing: 30 of 1,200",
        "note: something",
        "computing: 80 of 1,200",
    ]
