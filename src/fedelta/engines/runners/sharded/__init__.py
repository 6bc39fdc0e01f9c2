"""Shards: one simulation over several processes or GPUs, by torch.distributed.

Rank 0 is the run: it holds the state, the memories and the folder. The other ranks hold the same clients and answer letters.

| kind | from rank 0 | kind | to rank 0 |
|---|---|---|---|
| "settle" | the run's resolved config | "ready" | what the rank has: its platform, rows and base |
| "restore" | the base that some clients held before their process was lost | | |
| "letter" | a letter, with its client's memory | | |
| "answer" | asks for the answers to all letters since the last one | "reply", "refusal" | one for each letter, as they come |
| "end" | the run is over | "end", "failed" | the rank ends; "failed" says why |

Each is a message in the form of `exchange.wire`.
"""
