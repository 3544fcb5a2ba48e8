"""Who answers: providers over HTTP and engines in nodes, behind one contract (`base`). All outgoing I/O is here."""
