from anomaly_lab.cli import main


def test_it_names_the_machine_and_every_dataset(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_LAB_DATA", str(tmp_path))
    (tmp_path / "magnetic_tile").mkdir()
    (tmp_path / "mvtec_ad").mkdir()
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "found" in lines["mt"]
    assert "found" in lines["mvtec"]
    assert "missing" in lines["apsd"]
    assert "ready" in lines["synthetic"]
    assert {"cores", "memory", "GPU", "bf16", "torch"} <= lines.keys()


def test_it_takes_no_options(capsys):
    assert main(["doctor", "x=1"]) == 2
    assert "x=1" in capsys.readouterr().err
