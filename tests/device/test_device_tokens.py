"""The phone looks after its token: it renews it in time, by itself, and between two assignments."""

import pytest
from device_fakes import APP_KEY, FakeCloud, fill, live, open_phone, problem

from flsys_ray.device.identity import RETRY_S
from flsys_ray.errors import Forbidden

LIFE_S = 30 * 86_400.0
RENEWALS = "POST /v1/devices/token"
ENROLMENTS = "POST /v1/devices"


@pytest.fixture
def idle(cloud: FakeCloud) -> FakeCloud:
    """A cloud that has no work, so that a phone only asks from time to time."""
    cloud.token_life_s = LIFE_S
    cloud.retry_after_s = 20_000.0
    cloud.models["har-wild"].rounds = 0
    return cloud


def test_a_token_is_renewed_when_a_third_of_its_life_is_left(tmp_path, idle):
    with open_phone(tmp_path, idle) as phone:
        fill(phone)
        live(phone, idle, LIFE_S * 2 / 3 - 30_000)
        assert not idle.calls(RENEWALS)
        kinds = live(phone, idle, 60_000)
        assert kinds.count("renewed") == 1
        (request,) = idle.calls(RENEWALS)
        assert request.headers["authorization"] == "Bearer device-token-0"
        assert not request.content
        live(phone, idle, 4 * LIFE_S, most=2000)
    assert len(idle.calls(ENROLMENTS)) == 1
    assert 5 <= len(idle.calls(RENEWALS)) <= 7
    assert all(APP_KEY not in str(request.headers) for request in idle.recorded[1:])


def test_a_renewal_that_fails_keeps_nothing_else_waiting_and_is_tried_an_hour_later(tmp_path, idle):
    def away(request):
        return (
            problem(503, "try-later", "later", {"Retry-After": "100"}) if request.url.path.endswith("/token") else None
        )

    with open_phone(tmp_path, idle) as phone:
        fill(phone)
        live(phone, idle, LIFE_S * 2 / 3 - 30_000)
        idle.faults = [away] * 10_000
        idle.retry_after_s = 60.0
        asked = len(idle.calls("POST /v1/checkins"))
        kinds = live(phone, idle, 60_000, most=3000)
        assert "renewed" not in kinds
        assert "failed" not in kinds
        assert len(idle.calls("POST /v1/checkins")) - asked > 100
        assert 1 <= len(idle.calls(RENEWALS)) <= 60_000 / RETRY_S + 1
        idle.faults = []
        assert "renewed" in live(phone, idle, 2 * RETRY_S)


def test_a_token_that_is_not_taken_for_renewal_ends_in_an_enrolment(tmp_path, idle):
    with open_phone(tmp_path, idle) as phone:
        fill(phone)
        live(phone, idle, LIFE_S * 2 / 3 - 30_000)
        idle.tokens.clear()
        live(phone, idle, 60_000)
        assert len(idle.calls(ENROLMENTS)) == 2
        assert len(idle.devices) == 1


def test_a_revoked_phone_says_so_and_asks_ever_more_seldom(tmp_path, idle):
    with open_phone(tmp_path, idle) as phone:
        fill(phone)
        live(phone, idle, 100)
        idle.tokens.clear()

        def revoked(request):
            return problem(403, "forbidden", "this device was revoked") if request.url.path == "/v1/devices" else None

        idle.faults = [revoked] * 10_000
        idle.recorded.clear()
        live(phone, idle, 86_400, most=1000)
        assert phone.step().detail in ("", "forbidden: this device was revoked")
        with pytest.raises(Forbidden, match="revoked"):
            phone._identity.enrol()
        assert 20 < len(idle.recorded) < 800


def test_a_phone_of_before_renews_its_token_once(tmp_path, idle):
    """Its database does not say when the token was given."""
    with open_phone(tmp_path, idle) as phone:
        fill(phone)
        live(phone, idle, 100)
        phone._database.set_settings({"renew_at": None, "renew_tried_at": None})
    with open_phone(tmp_path, idle) as phone:
        assert live(phone, idle, 40_000).count("renewed") == 1
        assert live(phone, idle, 80_000).count("renewed") == 0


def test_evidence_is_asked_for_at_enrolments_alone(tmp_path, idle):
    asked = []

    def attest(installation_id: str, nonce: str) -> str:
        asked.append((installation_id, nonce))
        return "evidence"

    with open_phone(tmp_path, idle, attest=attest) as phone:
        fill(phone)
        live(phone, idle, 2 * LIFE_S, most=2000)
    assert len(asked) == 1
    (request,) = idle.calls(ENROLMENTS)
    assert b'"nonce":"nonce-0"' in request.content.replace(b": ", b":")
    assert b"evidence" in request.content
