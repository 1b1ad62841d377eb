"""Every operator of torch's own database under the counter: exact, a move, or listed; none is wrong.

`pytest tests/neuromorphic/test_counter_operators.py --whole -s` runs all samples in five dtypes, which takes minutes.
"""

import re

import pytest

pytest.importorskip("expecttest", reason="torch's database of operators needs it: pip install expecttest")

from brute_force import ORACLES
from operator_net import DTYPES, PAGE, Net, operators

from neuromorphic.count import complex_rules, product_operators, rules, structured


@pytest.fixture(scope="module")
def net(request):
    is_whole = request.config.getoption("--whole")
    found = Net() if is_whole else Net(samples=2, largest=300)
    found.run(operators(), DTYPES if is_whole else DTYPES[:2])
    print(f"\n{found.figures()}")
    return found


def test_no_operator_is_counted_wrong(net):
    assert net.faults == []


def test_most_operators_are_counted_or_moves(net):
    statuses = [net.status(name) for name in net.found]
    assert len(statuses) > 350
    assert statuses.count("exact") > 130


def test_the_page_says_the_same_of_each_operator(net):
    rows = re.findall(r"^\| (counted|moves|no part|listed|wrong).*?\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    words = {"counted": "exact", "moves": "move", "no part": "free", "listed": "listed", "wrong": "wrong"}
    told = {name: words[row] for row, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert net.found.keys() <= told.keys()
    # a sample may have met only arguments that have no rule, or that make it a move
    assert {name: told[name] for name in net.found if net.status(name) == "exact" != told[name]} == {}


# on other devices, in other phases of training, or without samples in the database; see test_counter_rows.py
ELSEWHERE = {
    *("cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_functional", "_batch_norm_no_update"),
    *(name for name in product_operators.PRODUCTS if "attention" in name),
}


def test_every_rule_has_a_definition_to_be_compared_with():
    ruled = {
        *(rules.PER_OUTPUT | rules.PER_INPUT | complex_rules.PER_OUTPUT | complex_rules.PER_INPUT),
        *(structured.NORMS | structured.STRUCTURED | product_operators.PRODUCTS),
    }
    assert ruled - set(ORACLES) - ELSEWHERE == set()
