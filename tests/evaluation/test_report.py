import io
import re
import sys
import warnings
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation import report
from lag_integrations.evaluation.results import summarize
from tests.evaluation.fake_records import evaluation, record

EVIL = "<script>alert('$x^$')</script>"
ODD_ARMS = (EVIL, "_underscored", "$x^$", "a|b", "学習", "#010203", "id=\"x\" & 'y'")


class Page(HTMLParser):
    """What is in a page: its tags with their attributes, and the words in each of its figures."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.figures, self._inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "figure":
            self.figures.append([])
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "figure"

    def handle_data(self, data):
        self.words.append(data.strip())
        if self._inside:
            self.figures[-1].append(data.strip())

    def values(self, *names):
        return [value for _, found in self.tags for name, value in found.items() if name in names]


@pytest.fixture(scope="module")
def results():
    return summarize(evaluation(questions=25))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    settings = {"dataset": "musique", "model": "a model", "machine": "a machine", "k": 3}
    report.html(results, settings, path)
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    records = [record(arm=arm, question_id=EVIL) for arm in ("none", *ODD_ARMS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {EVIL: 1, "dataset": EVIL, "model": EVIL, "items": "7 pieces"}
        report.html(summarize(records), settings, path)
    return path.read_text("utf-8")


def test_the_page_needs_nothing_else(page):
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    links = found.values("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    links += re.findall(r"url\(([^)]*)\)", page)
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page


def test_ids_are_unique_and_links_lead_somewhere(page):
    found = Page(page)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    links = found.values("href", "xlink:href", "aria-labelledby")
    links += re.findall(r"url\(([^)]*)\)", page)
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_arm_is_in_every_picture(page, results):
    found = Page(page)
    assert len(found.figures) == 4
    for words in found.figures:
        assert set(results.arms) <= set(words)


def test_the_best_arms_come_first(page, results):
    lead = results.leads["all"]
    best = results.figures["all"][lead.arm].exact_match.mean
    words = Page(page).words
    assert words.index(f"{lead.arm} {100 * best:.1f} %") < words.index("Exact match")


def test_settings_and_strata_are_there(page):
    words = Page(page).words
    assert words.index("a machine") == words.index("machine") + 1
    for part in ("All", "Seen", "Overlapping", "Unseen"):
        assert f"{part} questions: answers" in words


def test_words_in_pictures_have_the_colour_of_the_page(page):
    assert "#010203" not in page  # what stands for it while it is drawn
    assert re.search(r"<text style=[^>]*fill: currentColor", page)
    assert "#ffffff" not in page.replace("</style>", "", 1).split("<body>")[1]
    assert "prefers-color-scheme: dark" in page


def test_the_same_results_make_the_same_page(page, results, tmp_path):
    settings = {"dataset": "musique", "model": "a model", "machine": "a machine", "k": 3}
    report.html(results, settings, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8") == page


def test_names_are_only_words(odd_page):
    found = Page(odd_page)
    assert "script" not in {tag for tag, _ in found.tags}
    for words in found.figures:
        assert set(ODD_ARMS) <= set(words)
    assert {EVIL, *ODD_ARMS, "7 pieces"} <= set(found.words)


def test_other_questions_are_told(odd_page, tmp_path):
    note = "Not all arms were asked the same questions"
    assert note not in odd_page
    records = [record(), record(question_id="q2"), record(arm="kv_last")]
    report.html(summarize(records), {}, tmp_path / "report.html")
    assert note in (tmp_path / "report.html").read_text("utf-8")


def test_without_the_extra(results, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "lag_integrations.evaluation.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EvaluationError, match=r"pip install 'lag_integrations\[evaluation\]'"):
        report.html(results, {}, tmp_path / "report.html")


TWENTY_AND_ONE = [
    *(record(question_id=f"q{n}", exact_match=n < 5, f1=0.5) for n in range(20)),
    *(
        record(
            arm="kv_last",
            question_id=f"q{n}",
            exact_match=0 < n < 20,
            f1=0.5,
            stored_bytes=2_500_000,
            computed_tokens=1234,
            logs=("a",) if n else (),
            scores=(0.9,) if n else (),
        )
        for n in range(20)
    ),
]


def test_markdown():
    told = report.markdown(summarize(TWENTY_AND_ONE))
    answers, cost = told.split("**All questions (seen): cost of one**")
    assert answers.startswith("**All questions (seen): answers**\n\n| arm | n | exact match % |")
    rows = {line.split(" | ")[0]: line.split(" | ") for line in answers.splitlines()}
    mine = rows["| kv_last"]
    assert mine[1] == "20"
    assert re.fullmatch(r"95\.0 \[[\d.]+, 100\.0\]", mine[2])
    assert re.fullmatch(r"\+70\.0 \[[\d.]+, [\d.]+\]", mine[3])
    assert mine[4:7] == ["better", "75.0", "5.0"]
    assert mine[8] == "5.0 |"  # one question without a log
    assert rows["| none"][3:7] == ["-"] * 4
    assert "| kv_last | 100.0 | 1.00 | 1.00 | 0.100 | 1,234 | 0 | 10 | 2.50 |" in cost


def test_answers_of_batches_have_no_seconds(tmp_path):
    batched = [
        one.model_copy(update={"seconds": None, "time_to_first_token": None})
        for one in TWENTY_AND_ONE
    ]
    told = report.markdown(summarize(batched))
    assert "| arm | answered % | rounds | tokens read |" in told
    assert "| kv_last | 100.0 | 1.00 | 1,234 | 0 | 10 | 2.50 |" in told
    report.html(summarize(batched), {}, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert len(page.figures) == 3
    assert "Time to first token" not in page.words
    assert "first token s" not in page.words


def test_old_answers_are_told_where_they_can_be_given():
    records = [
        *(record(question_id=f"q{n}") for n in range(5)),
        *(
            record(question_id=f"t{n}", stratum="twin", parroted=n < 3, arm=arm)
            for n in range(4)
            for arm in ("none", "kv_last")
        ),
    ]
    found = summarize(records).figures
    assert found["twin"]["kv_last"].parroted.mean == 0.75
    assert found["all"]["none"].parroted.mean == 0.75  # of those that have an old answer
    assert found["seen"]["none"].parroted is None
    told = report.markdown(summarize(records))
    twins = told.partition("**Twin questions: answers**")[2]
    assert "| parroted % |" in twins
    assert "| 75.0 [" in twins
    seen = told.partition("**Seen questions: answers**")[2].partition("**Twin")[0]
    assert "parroted" not in seen


def test_arms_are_compared_with_a_chosen_one():
    records = [
        record(arm=arm, question_id=f"q{n}", exact_match=n in right)
        for arm, right in (("none", range(0)), ("text_last", range(10)), ("kv_last", range(5, 20)))
        for n in range(20)
    ]
    told = report.markdown(summarize(records))
    table = told.partition("**All questions (seen): against text_last**")[2].partition("**")[0]
    assert table.splitlines()[2] == "| arm | n | difference | verdict | gained % | harmed % |"
    (row,) = (line.split(" | ") for line in table.splitlines() if "kv_last" in line)
    assert row[1] == "20"
    assert row[2].startswith("+25.0 [")
    assert row[3:] == ["unclear", "50.0", "25.0 |"]
    assert "| none |" not in table
    other = report.markdown(summarize(records, against="kv_last"))
    assert "| text_last | 20 | -25.0 [" in other.partition("against kv_last**")[2]
    assert "against cheatsheet" not in report.markdown(summarize(records, against="cheatsheet"))


def test_how_answers_read_is_told_where_it_is_known():
    plain = report.markdown(summarize([record(), record(arm="kv_last")]))
    assert "how they read" not in plain
    rated = [
        record(repetition=0.0),
        record(arm="kv_last", repetition=0.5, log_likelihood=-1.5),
        record(arm="kv_last", question_id="q2", repetition=0.0, log_likelihood=-0.5),
    ]
    told = report.markdown(summarize(rated)).partition("how they read**")[2]
    assert "| arm | repeated % | nats a token, as text |" in told
    assert "| none | 0.0 | - |" in told
    assert "| kv_last | 25.0 | -1.00 |" in told
    unrated = [one.model_copy(update={"log_likelihood": None}) for one in rated]
    assert "| arm | repeated % |\n" in report.markdown(summarize(unrated))


def test_markdown_of_odd_names():
    told = report.markdown(summarize([record(arm="a|<b>\nc")]))
    assert "| a\\|&lt;b&gt; c | 1 |" in told


def test_a_single_stratum_is_told_once(results):
    # Titles of answers, cost and floors.
    assert report.markdown(summarize(TWENTY_AND_ONE)).count("**") == 6
    assert report.markdown(results).count("**") == 24  # against text_last, too


@pytest.mark.parametrize("width", [80, 150])
def test_console(results, width):
    file = io.StringIO()
    Console(file=file, width=width).print(report.console(results))
    told = file.getvalue()
    for arm in results.arms:
        tables = 8 if arm in ("none", "text_last") else 12
        assert len(re.findall(rf"^ *{arm} ", told, re.MULTILINE)) == tables
    stored = results.figures["unseen"]["kv_all"].stored_bytes
    assert f"{stored / 1e6:.2f}" in told  # the last column
    assert max(map(len, told.splitlines())) <= width
