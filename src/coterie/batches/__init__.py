"""Packed batches of rollouts: each prompt once, its continuations behind it, no padding.

    tokens     [ prompt A | A's rollout 1 | A's rollout 2 | prompt B | B's rollout 1 | … ]
    positions  [ 0 1 2 3  | 4 5 6         | 4 5 6 7       | 0 1 2    | 3 4           | … ]

Where all prompts start alike (a system message, the template), that head is there once too:

    tokens     [ head | rest of prompt A | A's rollout 1 | rest of prompt B | B's rollout 1 | … ]
    positions  [ 0 1  | 2 3              | 4 5 6         | 2                | 3 4           | … ]

Axis letters: T tokens of the packed row, N trained tokens.
"""
