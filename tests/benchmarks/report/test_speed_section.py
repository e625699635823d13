from benchmarks.report.speed_section import render_speed


def part(rate, **changes):
    return {
        "tokens_per_second": rate,
        "padding": None,
        "mfu": 0.004,
        "tokens_a_step": 32_000,
        "busy": 0.25,
        "lowest": 90_000,
        "highest": 130_000,
        "runs": [{}, {}],
    } | changes


def test_the_section_has_a_row_for_each_way_to_train():
    result = {
        "steps": 50,
        "warm_up": 10,
        "parts": {
            "before, 3M": part(110_000.0),
            "after, 3M": part(900_000.0, padding=0.02, mfu=None, busy=None),
        },
        "machine": {"device": "a GPU"},
    }
    page = render_speed(result)
    assert "| before, 3M | 32,000 | 110,000 (90,000-130,000) | 0.4 | 25.0 | 0.0 |" in page
    assert "| after, 3M | 32,000 | 900,000 (90,000-130,000) | - | - | 2.0 |" in page
    assert "40 steps after 10 of warm-up in each of 2 runs" in page
