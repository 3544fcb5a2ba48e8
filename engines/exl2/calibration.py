"""x"""


async def costs_of(model, worker):
    return None
