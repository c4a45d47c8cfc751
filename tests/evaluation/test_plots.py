"""Pictures name what they show, and nothing else."""

from ardistill.evaluation import critic_plot, plots


def test_the_curves_of_a_critic_are_named_where_the_log_has_them(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    log = [{"step": 1, "loss": 0.2, "d_loss": 2.0}, {"step": 2, "loss": 0.1, "d_loss": 1.5, "g_loss": 0.3}]
    told = {"d_real_accuracy": 0.5, "d_gradient_norm": 1.0, "g_weight": 1.0, "recall": 0.5}
    critic_plot(log, tmp_path / "matching.png")
    critic_plot([*log, {"step": 3, **told}], tmp_path / "adversarial.png")
    assert [axes.get_title() for axes in drawn[1].axes] == [*plots.CRITIC_PANELS]
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    named = {title: [x.get_text() for x in axes.get_legend().get_texts()] for title, axes in panels.items()}
    second = ["student", "discriminator or fake score"]
    assert named == {"regression loss": ["against the teacher"], "losses beside it": second}
    assert [line.get_xdata().tolist() for line in panels["losses beside it"].lines] == [[2], [1, 2]]
