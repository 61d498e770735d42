"""Compression methods: one algorithm, one file, one frozen dataclass, `method.run(network, context) -> network`.

`METHODS` is their list, by the names that recipe files use; what it names is loaded when a recipe asks for it.
"""

METHODS = {
    "fold": "microtome.methods.fold:FoldBatchNorm",
    "replace_norms": "microtome.methods.replace_norms:ReplaceNorms",
    "merge_layers": "microtome.methods.merge_layers:MergeLayers",
    "merge_channels": "microtome.methods.merge_channels:MergeChannels",
    "group_channels": "microtome.methods.group_channels:GroupChannels",
    "prune": "microtome.methods.prune:Prune",
    "sparsify": "microtome.methods.sparsify:Sparsify",
    "equalize": "microtome.methods.equalize:Equalize",
    "smooth": "microtome.methods.smooth:Smooth",
    "even_layernorm": "microtome.methods.even_layernorm:EvenLayerNorm",
    "factorize": "microtome.methods.factorize:Factorize",
    "quantize": "microtome.methods.quantize:Quantize",
    "dynamic": "microtome.methods.dynamic:QuantizeDynamic",
    "attention": "microtome.methods.attention:QuantizeAttention",
    "encode": "microtome.methods.encode:EncodeWeights",
    "correct_bias": "microtome.methods.bias_correction:CorrectBias",
    "correct_bias_analytically": "microtome.methods.bias_analytic:CorrectBiasAnalytically",
    "gptq": "microtome.methods.gptq:Gptq",
    "adaround": "microtome.methods.adaround:AdaRound",
    "reconstruct": "microtome.methods.reconstruct:Reconstruct",
    "repeat": "microtome.methods.repeat:Repeat",
    "finetune": "microtome.methods.finetune:Finetune",
    "distill": "microtome.methods.distill:Distill",
    "search": "microtome.methods.search:Search",
}
