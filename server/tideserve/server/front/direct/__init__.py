"""The direct front: HTTP/2 in the dispatcher's own thread, straight from the sockets.

`front` waits for sockets and moves bytes; `connection` is one client's HTTP/2, without IO, over
`headers`, `messages` and `outbox`. What comes in one turn is read together and what goes out of one
turn is sent together, and no other thread stands between: see docs/decisions/0014.
"""
