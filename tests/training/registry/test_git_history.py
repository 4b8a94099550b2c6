"""Laws of what git is asked: the commit, whether the code was changed, and files as they were."""

from tests.training.registry.repositories import git, move_data_on
from training.registry.git_history import git_facts, has_commit, text_at, user_name


def test_a_changed_file_makes_the_tree_dirty_but_what_runs_write_does_not(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert git_facts(repository) == (head, False)

    (repository / "metrics").mkdir()
    (repository / "metrics" / "evaluate.json").write_text("{}")
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    assert git_facts(repository) == (head, False)

    (repository / "code.py").write_text("answer = 43\n")
    assert git_facts(repository) == (head, True)


def test_where_git_is_absent_what_was_given_counts(tmp_path, monkeypatch, repository):
    assert git_facts(tmp_path, "c0ffee", False) == ("c0ffee", False)
    assert git_facts(tmp_path) == (None, None)

    monkeypatch.setenv("PATH", "")
    assert git_facts(repository, "c0ffee", True) == ("c0ffee", True)


def test_a_folder_without_git_does_not_take_the_commit_of_the_one_above(repository):
    inner = repository / "inner"
    inner.mkdir()

    assert git_facts(inner, "c0ffee") == ("c0ffee", None)


def test_a_file_is_read_as_it_was_at_a_commit(repository):
    first = git(repository, "rev-parse", "HEAD")
    before = (repository / "params.yaml").read_text()
    move_data_on(repository)

    assert text_at(repository, first, "params.yaml") == before.strip()
    assert text_at(repository, "0" * 40, "params.yaml") is None
    assert text_at(repository, first, "none.yaml") is None


def test_a_commit_is_known_by_the_history_alone(repository):
    assert has_commit(repository, git(repository, "rev-parse", "HEAD"))
    assert not has_commit(repository, "0" * 40)


def test_a_user_is_called_as_in_their_commits(repository, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    assert user_name(repository) is None

    git(repository, "config", "user.name", "Ada Lovelace")
    assert user_name(repository) == "Ada Lovelace"
