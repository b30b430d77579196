"""An agent of the user's own as an episode: it knows OpenAI's API alone, has a tool, and judges its own answer.

[environment]
name = "program"
params = { command = ["python3", "recipes/program_agent.py", "{prompt}", "{answer}"] }

It runs as well against any server, without coterie: OPENAI_BASE_URL=… OPENAI_API_KEY=… OPENAI_MODEL=… python
program_agent.py "What is 17 * 23?" 391
"""

import ast
import json
import operator
import os
import sys
from typing import Any

import openai  # ty: ignore[import-not-found]

SYSTEM = "Call the function calculate for every calculation. Then answer with the number alone."
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Value of an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
MOST_CALLS = 3


def calculate(expression: str) -> int:
    """Value of sums, differences and products of whole numbers."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("only whole numbers with +, - and *")

    return value(ast.parse(expression, mode="eval").body)


def run_tool(arguments: str) -> str:
    """Result of a call, or what is wrong with it."""
    try:
        return str(calculate(**json.loads(arguments)))
    except Exception as error:
        return f"error: {error}"


def main(question: str, answer: str) -> float:
    """Ask until the model answers without a call; 1 for the right number."""
    client = openai.OpenAI()
    model = os.environ.get("OPENAI_MODEL", "policy")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    for _ in range(MOST_CALLS + 1):
        message = client.chat.completions.create(model=model, messages=messages, tools=[TOOL]).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return float((message.content or "").strip() == answer)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": run_tool(call.function.arguments)})
    return 0.0


if __name__ == "__main__":
    reward = main(*sys.argv[1:])
    print(reward)
    if "COTERIE_REWARD" in os.environ:
        with open(os.environ["COTERIE_REWARD"], "w") as file:
            file.write(str(reward))
