"""DP-SGD by Opacus: softmax regression on the given features, in an environment of its own (see `harness.Worker`)."""

import itertools
import warnings

import numpy as np


def prepare(x, y, orders, train, epsilon, delta, epochs, batch, rate, clip):
    import torch
    from opacus import PrivacyEngine

    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    x, y = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    classes, train = int(y.max()) + 1, int(train)
    turns = itertools.cycle(enumerate(orders))

    def work():
        seed, order = next(turns)
        order = torch.from_numpy(order.astype(np.int64))
        data = torch.utils.data.TensorDataset(x[order[:train]], y[order[:train]])
        held_out = x[order[train:]]
        torch.manual_seed(seed)
        model = torch.nn.Linear(x.shape[1], classes)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=float(rate), momentum=0.9)
        loader = torch.utils.data.DataLoader(data, batch_size=int(batch))
        # Rényi accounting: the default, PRV, reads its tables from a package resource that newer Pythons lack.
        engine = PrivacyEngine(accountant="rdp")
        model, optimizer, loader = engine.make_private_with_epsilon(
            module=model, optimizer=optimizer, data_loader=loader, epochs=int(epochs), target_epsilon=float(epsilon),
            target_delta=float(delta), max_grad_norm=float(clip),
        )  # fmt: skip
        for _ in range(int(epochs)):
            for rows, labels in loader:
                optimizer.zero_grad()
                if len(rows):
                    torch.nn.functional.cross_entropy(model(rows), labels).backward()
                    optimizer.step()
        with torch.no_grad():
            return model(held_out).argmax(1).numpy()

    return work
