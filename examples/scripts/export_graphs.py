"""One converted network, exported by torch.export, to ONNX and to NIR.

    pip install -e ".[onnx,nir]" onnxruntime
    python examples/scripts/export_graphs.py

Writes `net.pt2`, `net.onnx` and `net.nir` into the current folder, reads them again, and compares
the spikes.
"""

import nir
import onnxruntime
import snntorch as snn
import torch
from torch import nn

from snn_single_spike import convert
from snn_single_spike.nir import export_to_nir, import_from_nir

torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(64, 30),
    snn.Leaky(beta=0.9, init_hidden=True),
    nn.Linear(30, 10),
    snn.Leaky(beta=0.9, init_hidden=True, output=True),
)
fast = convert(net).eval()
data = 3 * torch.rand(12, 4, 64)  # (time, batch, features)
with torch.no_grad():
    spk_rec, mem_rec = fast(data)

# torch.export: for torch without Python's source; needs this package where it runs
torch.export.save(torch.export.export(fast, (data,)), "net.pt2")
spikes, _ = torch.export.load("net.pt2").module()(data)
assert torch.equal(spikes, spk_rec)

# ONNX: standard operators, time unrolled
torch.onnx.export(fast, (data,), "net.onnx", dynamo=True, verbose=False)
session = onnxruntime.InferenceSession("net.onnx")
spikes, _ = session.run(None, {session.get_inputs()[0].name: data.numpy()})
differing = (torch.from_numpy(spikes) != spk_rec).float().mean().item()
assert differing < 1e-3  # a membrane within rounding of the threshold

# NIR: for other simulators and neuromorphic chips
nir.write("net.nir", export_to_nir(fast, data))
again = import_from_nir(nir.read("net.nir"))
with torch.no_grad():
    found = again(data)
spikes = found[0] if isinstance(found, tuple) else found
assert torch.equal(spikes, spk_rec)
print(f"{int(spk_rec.sum())} spikes, the same from torch.export, ONNX and NIR")
