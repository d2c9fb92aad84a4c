"""Eq. 2: logits at answer positions only give the loss and the gradients of the full sequence."""

import pytest
import torch
from torch import nn

from craft.losses import answer_positions, surrogate_alignment


def full_sequence(hidden, head, labels, reduction):
    """The slow reference: logits everywhere, shift, cross-entropy with ignored positions."""
    logits = head(hidden).float()
    loss = nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]),
        labels[:, 1:].reshape(-1),
        ignore_index=-100,
        reduction="sum",
    )
    return loss / ((labels[:, 1:] != -100).sum() if reduction == "mean" else len(labels))


def batch(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 9, 16, generator=g).to(dtype).requires_grad_()
    head = nn.Linear(16, 50, bias=False).to(dtype)
    labels = torch.full((3, 9), -100)
    labels[0, 5:8] = torch.tensor([3, 49, 0])
    labels[1, 8] = 7  # the last token
    labels[2, 0] = 11  # the first token: nothing predicts it
    labels[2, 3] = 12  # answers need not be in one piece
    labels[2, 6:8] = torch.tensor([1, 2])
    return hidden, head, labels


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_full_sequence_in_value_and_gradient(reduction):
    hidden, head, labels = batch()
    ours = surrogate_alignment(hidden, head, labels, reduction)
    ours_grads = torch.autograd.grad(ours, [hidden, head.weight])
    reference = full_sequence(hidden, head, labels, reduction)
    reference_grads = torch.autograd.grad(reference, [hidden, head.weight])
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-6)
    for one, other in zip(ours_grads, reference_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_equals_the_labels_argument_of_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    embeds = torch.randn(2, 12, 16, requires_grad=True)
    labels = torch.full((2, 12), -100)
    labels[0, 7:10], labels[1, 9:12] = torch.tensor([5, 6, 7]), torch.tensor([50, 2, 1])
    theirs = model(inputs_embeds=embeds, labels=labels).loss
    hidden = model.model(inputs_embeds=embeds).last_hidden_state
    ours = surrogate_alignment(hidden, model.get_output_embeddings(), labels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    (a,), (b,) = torch.autograd.grad(ours, embeds), torch.autograd.grad(theirs, embeds)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_head_sees_answer_positions_only():
    hidden, head, labels = batch()
    seen = []
    surrogate_alignment(hidden, lambda h: (seen.append(tuple(h.shape)), head(h))[1], labels)
    assert seen == [(7, 16)]
    assert int(answer_positions(labels).sum()) == 7


def test_loss_is_float32_for_bfloat16_models():
    loss = surrogate_alignment(*batch(torch.bfloat16))
    assert loss.dtype == torch.float32


def test_refuses_batches_without_answers_and_wrong_shapes():
    hidden, head, labels = batch()
    with pytest.raises(ValueError, match="no answer token"):
        surrogate_alignment(hidden, head, torch.full_like(labels, -100))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        surrogate_alignment(hidden, head, labels[:, 1:])
