"""Ask a running `craft serve` with the `openai` package.

craft serve craft-tiny/llama --encoder apparel=runs/apparel
python examples/serve/ask.py photo.png
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
picture = base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    {"type": "text", "text": "Which of these choices is shown in the image?"},
]
reply = client.chat.completions.create(
    model="craft-tiny/llama:apparel",
    messages=[{"role": "user", "content": content}],
    extra_body={"options": ["bag", "coat", "dress", "sneaker"]},
)
for option in reply.choices[0].options:
    print(f"{option['text']:<10} {option['probability']:.3f}")
print(reply.craft["encoders"][0]["name"])
