"""From data as they are downloaded, or lie in a clinic's folder, to files and an overlay that the configurations read.

Nothing is downloaded, and nothing in the source is changed. Run from the bundle's folder:

    python -m scripts.prepare btcv RawData.zip --output data/btcv
    python -m scripts.prepare chaos CHAOS_Train_Sets.zip --output data/chaos_t2spir
    python -m scripts.prepare folder /data/mine --image "img/{case}.nii.gz" --label "seg/{case}.nii.gz" --output mine
    python -m scripts.prepare decathlon /data/Task09_Spleen/dataset.json --output spleen

or from any folder as ``python path/to/bundle/scripts/prepare``. A second call writes only what is missing.
"""
