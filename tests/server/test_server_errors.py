import pytest

from videonsa.errors import BudgetError, ModelError, UsageError, VideoError
from videonsa.server.errors import RefusedRequest, refusal


def test_a_refusal_is_one_line_in_openais_form_and_bounded():
    told = RefusedRequest(413, "a body\r\nSet-Cookie: x of " + "9" * 5000, param="messages").body()
    error = told["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == "messages"
    assert "\n" not in error["message"] and "\r" not in error["message"]
    assert len(error["message"]) < 1100


def test_a_full_queue_says_in_whole_seconds_when_to_try_again():
    told = RefusedRequest(429, "full", retry_after=0.2)
    assert told.headers() == {"Retry-After": "1"}
    assert told.body()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BudgetError("too long"), 400, "context_length_exceeded"),
        (VideoError("no video"), 400, "unreadable_media"),
        (UsageError("no"), 400, None),
        (ModelError("not finite"), 500, None),
        (ZeroDivisionError("secret"), 500, None),
    ],
)
def test_errors_of_users_are_theirs_and_defects_keep_their_details(error, status, code):
    told = refusal(error)
    assert (told.status, told.code) == (status, code)
    assert "secret" not in str(told)
