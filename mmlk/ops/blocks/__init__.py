"""Several layers as one operator on tensors, for training and inference on a CPU.

Small maps make a layer's own cost, its views and its autograd nodes as expensive as its arithmetic. What
always follows each other in a network is therefore one node where nothing has to see the layers. The
definition of each is the chain of layers (`mmlk.ops.reference`); layers ask `dispatch.accelerated`.
"""
