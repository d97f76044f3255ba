import pytest

from flsys_ray.core.plan import Eligibility
from flsys_ray.device.conditions import READY, Conditions, FixedConditions, LinuxConditions, TraceConditions, eligible
from flsys_ray.errors import InvalidInput

WORST = Conditions(charging=False, idle=False, unmetered=False, battery_fraction=0.1)


def test_every_obstacle_is_named():
    plan = Eligibility(min_examples=10)
    assert eligible(READY, plan, 10) == ()
    assert eligible(WORST, plan, 9) == ("not-charging", "in-use", "metered", "battery-low", "too-few-examples")
    assert eligible(WORST, plan, 10) == ("not-charging", "in-use", "metered", "battery-low")


def test_a_plan_may_ask_for_nothing():
    free = Eligibility(charging=False, idle=False, unmetered=False, min_battery_fraction=0, min_examples=1)
    assert eligible(WORST, free, 1) == ()


def test_a_trace_is_played():
    trace = TraceConditions([(10, READY), (20, WORST)])
    assert [trace.read(now) for now in (0, 10, 19.9, 20, 1e9)] == [READY, READY, READY, WORST, WORST]
    assert FixedConditions(WORST).read(5) == WORST
    for points in ([], [(20, READY), (10, WORST)]):
        with pytest.raises(InvalidInput):
            TraceConditions(points)


def system(root, *, supplies: dict[str, dict[str, str]], load: str = "0.10", interface: str = "wlan0"):
    for name, values in supplies.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in values.items():
            (folder / key).write_text(value + "\n")
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    (root / "proc/loadavg").write_text(f"{load} 0.20 0.30 1/100 42\n")
    (root / "proc/net/route").write_text(
        f"Iface Destination Gateway\n{interface} 0000A8C0 0\n{interface} 00000000 01\n"
    )
    return LinuxConditions(root=root, refresh_s=5)


def test_linux_on_a_charger(tmp_path):
    battery = {"type": "Battery", "status": "Charging", "capacity": "83"}
    mouse = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "2"}
    found = system(tmp_path, supplies={"AC": {"type": "Mains", "online": "1"}, "BAT0": battery, "mouse": mouse})
    assert found.read(0) == Conditions(charging=True, idle=True, unmetered=True, battery_fraction=0.83)


def test_linux_on_its_way(tmp_path):
    battery = {"type": "Battery", "status": "Discharging", "capacity": "40"}
    supplies = {"AC": {"type": "Mains", "online": "0"}, "BAT0": battery}
    found = system(tmp_path, supplies=supplies, load="999.0", interface="wwan0")
    assert found.read(0) == Conditions(charging=False, idle=False, unmetered=False, battery_fraction=0.4)
    system(tmp_path, supplies={"BAT0": {"status": "Full", "capacity": "100"}})
    assert not found.read(4.9).charging  # kept
    assert found.read(5).charging
    assert found.read(0).charging  # a clock that was set back reads anew


def test_linux_without_a_battery(tmp_path):
    assert LinuxConditions(root=tmp_path).read(0) == READY
    assert 0 <= LinuxConditions().read(0).battery_fraction <= 1
