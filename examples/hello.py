"""Load a shipped model, look at what it makes of one picture, and ask it a question."""

import craft

sample = craft.data.load_data("apparel").test[0]  # any picture will do: a path, a PIL image, an array
lvlm = craft.load("craft-tiny/llama")

tokens = lvlm.encode([sample.image])
print("level-1 codes of the patch grid:")
print(tokens.codes[0, :, 0].reshape(tokens.grid))

print(sample.prompt())
answer = lvlm.answer([sample.image], [sample.prompt()])[0]
print(f"-> {answer} (right: {sample.answer})")
