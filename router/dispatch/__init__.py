"""The walk of one request: lease, attempt, relay, settle.

Until the first piece of an answer is in hand nothing was promised to the client, so an attempt that fails may be made
elsewhere (`dispatcher`). From then on the reply is that one answer (`reply`): it ends whole, whoever writes its rest
(`recovery`), or with an explicit error.
Whatever happens, and cancellation is one of the things that happen, the lease is settled once, the backend is let go,
and one RequestDone is said (`walk`).
"""

from router.dispatch.call import Call, Terms
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.reply import Reply

__all__ = ["Call", "Dispatcher", "Reply", "Terms"]
