"""The built-in set on which a model is measured: short runs, and questions whose answers are known.

Five kinds, because a setting that is best for one may be worst for another: sharp attention reads
an answer off when its question comes back, and repeats the old answer when the question is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from lag_integrations.engine.log_settings import Kind
from lag_integrations.traces.message import Message, Role, ToolCall
from lag_integrations.traces.trace import Trace

KINDS: tuple[Kind, ...] = get_args(Kind)
"""``repeated``: the task of the only log comes back in other words. ``several``: the same, with two
other logs beside it. ``dropped``: the answer stands in the run, but not in its last turn.
``instance``: the logged task with other particulars, for which the old answer is wrong.
``foreign``: no log answers, the prompt does."""


@dataclass(frozen=True)
class Case:
    """A question, the logs that are given for it, and its answer.

    Attributes:
        kind: What it tests.
        logs: Runs, the most fitting one last.
        question: What is asked.
        stem: How an answer begins, so that answers are compared by what matters in them.
        right: What must follow.
        wrong: What the log would have follow, where that is wrong.
    """

    kind: Kind
    logs: tuple[Trace, ...]
    question: str
    stem: str
    right: str
    wrong: str | None = None


def _run(question: str, *turns: str) -> Trace:
    """Make a run of a question, then what assistant and user said in turns."""
    roles: tuple[Role, Role] = ("assistant", "user")
    said = [Message(role=roles[index % 2], content=turn) for index, turn in enumerate(turns)]
    return Trace(messages=(Message(role="user", content=question), *said), task=question)


def _tool_run(question: str, tool: str, args: dict[str, str], result: str, answer: str) -> Trace:
    """Make a run in which a tool was called once."""
    call = ToolCall(name=tool, args=dict(args), id="call00001")
    return Trace(
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content=result, tool_call_id="call00001", name=tool),
            Message(role="assistant", content=answer),
        ),
        task=question,
    )


_VAULT = _run(
    "The vault in Zurich is opened with the code 7431. It was built by Ada Krenn in 1987. "
    "How do I open the vault in Zurich?",
    "The vault in Zurich is opened with the code 7431.",
)
_FERRY = _tool_run(
    "What does the ferry of Ostrava carry on Sundays?",
    "timetable",
    {"ferry": "Ostrava"},
    "Captain: Mira Holt. Monday to Saturday: cars. Sunday: bees.",
    "On Sundays the ferry of Ostrava carries only bees.",
)
_FREIGHT = _run(
    "How do we send fragile goods to Norway?",
    "I need to know our carrier, and how the goods must be packed.",
    "The carrier is Nordfrakt. Pack the goods in crates of pine. Insurance is for 4,000 euros.",
    "Send fragile goods to Norway with Nordfrakt, in crates of pine.",
)
_BACKUP = _run(
    "The nightly backup fails with error E17. What is to be done?",
    "Error E17 means that the disk of the backup server is full. Delete the archives of the "
    "folder /var/old, then start the job again with backup --resume.",
)
_BILLING = _tool_run(
    "Which port does the billing service listen on?",
    "catalogue",
    {"service": "billing"},
    "name: billing; port: 9443; owner: team Heron; language: Go",
    "The billing service listens on port 9443.",
)
_REPORT = _run(
    "What is the file of the sales report of March 2021 called?",
    "Reports are named by kind, year and month. The file is called sales-2021-03.pdf.",
)
_MAIL = _run(
    "What is the mail address of Anna Berg at Norwind?",
    "Addresses at Norwind are first name, dot, last name. It is anna.berg@norwind.example.",
)
_REVENUE = _run(
    "A shop sold 5 lamps at 200 euros each. What is its revenue?",
    "I will look the formula up.",
    "Formula: revenue = number sold x price.",
    "Use revenue = number sold x price. The answer is 1,000 euros.",
)
_RATIO = _run(
    "A firm has current assets of 900 and current liabilities of 300. What is its current ratio?",
    "I will look the formula up.",
    "Formula: current ratio = current assets / current liabilities.",
    "Use current ratio = current assets / current liabilities. The answer is 3.",
)

CASES = (
    Case("repeated", (_VAULT,), "Tell me how to open the Zurich vault.", "The code is", " 7431."),
    Case(
        "repeated",
        (_FERRY,),
        "What is carried by the Ostrava ferry on a Sunday?",
        "On Sundays it carries",
        " only bees.",
    ),
    Case(
        "repeated",
        (_BACKUP,),
        "Our nightly backup stopped with error E17. What should I do?",
        "Delete the archives of the folder",
        " /var/old",
    ),
    Case(
        "repeated",
        (_BILLING,),
        "On which port does billing listen?",
        "The billing service listens on port",
        " 9443.",
    ),
    Case(
        "several",
        (_VAULT, _BACKUP, _FREIGHT),
        "How are fragile goods sent to Norway?",
        "Fragile goods are sent to Norway with",
        " Nordfrakt",
    ),
    Case(
        "several",
        (_FERRY, _FREIGHT, _BILLING),
        "Which port is the billing service on?",
        "The billing service is on port",
        " 9443.",
    ),
    Case(
        "several",
        (_BILLING, _FERRY, _VAULT),
        "What code opens the vault in Zurich?",
        "The code is",
        " 7431.",
    ),
    Case(
        "dropped",
        (_VAULT,),
        "Who built the vault in Zurich?",
        "The vault in Zurich was built by",
        " Ada Krenn",
    ),
    Case(
        "dropped",
        (_FREIGHT,),
        "For how much are fragile goods to Norway insured?",
        "They are insured for",
        " 4,000 euros",
    ),
    Case(
        "dropped",
        (_BILLING,),
        "Which team owns the billing service?",
        "The billing service is owned by team",
        " Heron",
    ),
    Case(
        "instance",
        (_REPORT,),
        "What is the file of the sales report of July 2024 called?",
        "The file is called",
        " sales-2024-07.pdf",
        " sales-2021-03.pdf",
    ),
    Case(
        "instance",
        (_MAIL,),
        "What is the mail address of Tom Lund at Norwind?",
        "It is",
        " tom.lund@norwind.example",
        " anna.berg@norwind.example",
    ),
    Case(
        "instance",
        (_BILLING, _FERRY, _REVENUE),
        "A shop sold 3 chairs at 400 euros each. What is its revenue?",
        "The answer is",
        " 1,200 euros.",
        " 1,000 euros.",
    ),
    Case(
        "instance",
        (_RATIO,),
        "A firm has current assets of 640 and current liabilities of 160. What is its current "
        "ratio?",
        "The answer is",
        " 4.",
        " 3.",
    ),
    Case(
        "foreign",
        (_BILLING,),
        "The museum of Lund opens at ten and closes at six. When does the museum of Lund close?",
        "The museum of Lund closes at",
        " six",
    ),
    Case(
        "foreign",
        (_VAULT, _FERRY, _REPORT),
        "Our new colleague Ines Varga works in Porto, in the team for maps. Where does Ines Varga "
        "work?",
        "Ines Varga works in",
        " Porto",
    ),
    Case(
        "foreign",
        (_FREIGHT,),
        "Translate into English: Guten Morgen.",
        "It means:",
        " Good morning",
    ),
)
"""The set. But for the last two instances, each answer can be given by a model of 0.5B parameters
that reads the run as text."""
