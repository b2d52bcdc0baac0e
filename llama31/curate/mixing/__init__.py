"""The mixture: from tokens per class and language to weights and epochs, and the `data/` YAML that training reads.

Imports: datatrove; runs; scoring (the hash of an id).
Offers: sources (what there is, by class and language), mixture (what each is worth), water_filling (shares under caps),
advice (what is possible where a target is not), knowledge (down-sampling of classes), classes (which document is code,
which mathematics), written (the YAML, and a table).
"""
