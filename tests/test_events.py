"""Events come to those who heed them."""

from router.events import Events, Hearer, NodeState, TargetState, UsageLost

LOST, NODE, STATE = UsageLost("me"), NodeState("e", "ready"), TargetState("t", "ejected", "x")


class Nodes(Hearer):
    """Heeds one kind."""

    def __init__(self):
        self.heard = []
        self.hears = {NodeState: self.heard.append}


def test_a_function_hears_every_kind_and_a_hearer_its_own():
    events, everything, nodes = Events(), [], Nodes()
    events.listen(everything.append)
    events.listen(nodes)
    for event in (LOST, NODE, STATE):
        events.emit(event)
    assert everything == [LOST, NODE, STATE]
    assert nodes.heard == [NODE]


def test_a_hearer_can_be_called_with_any_event():
    nodes = Nodes()
    nodes(LOST)
    nodes(NODE)
    assert nodes.heard == [NODE]


def test_listeners_hear_in_the_order_in_which_they_came():
    events, order = Events(), []
    for name in ("first", "second", "third"):
        events.listen(lambda _, name=name: order.append(name))
    events.emit(LOST)
    assert order == ["first", "second", "third"]


def test_one_that_raises_is_logged_and_the_next_still_hears(caplog):
    events, heard = Events(), []
    events.listen(lambda event: {}[event])
    events.listen(heard.append)
    events.emit(LOST)
    assert heard == [LOST]
    assert "a listener failed on UsageLost" in caplog.text
