"""What a board says of itself, read from trees of files as a Raspberry Pi has them."""

from __future__ import annotations

from pathlib import Path

from dilrewrite.devices import _facts


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def test_a_board_with_everything(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/device-tree/serial-number": "abc\0",
            f"{cpus}/cpu0/cpufreq/scaling_governor": "ondemand\n",
            f"{cpus}/cpu1/cpufreq/scaling_governor": "performance\n",
            f"{cpus}/cpu0/cpufreq/scaling_max_freq": "2400000\n",
            f"{cpus}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            f"{cpus}/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
            "sys/class/thermal/thermal_zone0/temp": "51200\n",
            "sys/class/thermal/thermal_zone1/temp": "63450\n",
            "sys/class/thermal/thermal_zone2/temp": "-274000\n",
            "sys/class/thermal/thermal_zone3/temp": "\n",
        },
    )
    told = _facts.facts(tmp_path, tmp_path)
    assert (told["model"], told["governor"], told["max_mhz"]) == (
        "Raspberry Pi 5 Model B Rev 1.0", "ondemand, performance", 2400,
    )  # fmt: skip
    assert told["free"] > 0
    state = _facts.state(tmp_path)
    assert (state["clock_mhz"], state["temperature_c"]) == (1950.0, 63.45)
    write(tmp_path, {"proc/device-tree/serial-number": "abd\0"})
    assert _facts.facts(tmp_path, tmp_path)["machine"] != told["machine"]


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    told = _facts.facts(tmp_path, tmp_path)
    assert (told["model"], told["governor"], told["max_mhz"]) == ("", "", 0)
    assert set(_facts.state(tmp_path)) <= {"load"}
