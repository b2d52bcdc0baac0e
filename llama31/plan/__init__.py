"""What a run will do and cost, from its config alone: batches, learning rate, layout, parameters, FLOPs.

Imports: config.
Offers: schedule, layout, shapes (parameters, FLOPs), memory (bytes by cause), passes (layers in flight), utilisation
(MFU), exposure (of messages), interval (of checkpoints).
"""
