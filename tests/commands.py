"""`flsys` in this process."""

from typer.testing import CliRunner

from flsys_ray.cli import app


def flsys(*words: str) -> str:
    """Run a command that must succeed; return what it printed. What it raises is raised."""
    done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.stdout)
