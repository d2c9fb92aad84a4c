"""Load a shipped model, print the codes of one image, and ask a question about it."""

import craft

sample = craft.data.load_data("apparel").test[0]  # a path, a PIL image or an array works too
lvlm = craft.load("craft-tiny/llama")

tokens = lvlm.encode([sample.image])
print("level-1 codes of the patch grid:")
print(tokens.codes[0, :, 0].reshape(tokens.grid))

print(sample.prompt())
answer = lvlm.answer([sample.image], [sample.prompt()])[0]
print(f"-> {answer} (right: {sample.answer})")
