"""Pictures name what they show, and nothing else."""

from ardistill.evaluation import adversarial_plot, plots


def test_the_curves_of_adversarial_training_are_named_where_the_log_has_them(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    log = [{"step": 1, "loss": 0.2, "d_loss": 2.0}, {"step": 2, "loss": 0.1, "d_loss": 1.5, "g_loss": 0.3}]
    adversarial_plot(log, tmp_path / "adversarial.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert [*panels] == [*plots.ADVERSARIAL_PANELS]
    named = {
        title: [x.get_text() for x in axes.get_legend().get_texts()]
        for title, axes in panels.items()
        if axes.get_legend()
    }
    assert named == {"regression loss": ["against the teacher"], "adversarial losses": ["student", "discriminator"]}
    lines = panels["adversarial losses"].lines
    assert [line.get_xdata().tolist() for line in lines] == [[2], [1, 2]]
