import json
from processes import run, compare_parts
def test_x(tmp_path, teacher):
    (tmp_path / "knots.json").write_text(json.dumps(teacher.knots(4).__dict__))
    run(2, tmp_path / "log", compare_parts, str(tmp_path))
