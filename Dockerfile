# DiffuSAM with its weights and its model: `docker build -t diffusam .`, for NVIDIA's GPUs
# `docker build --build-arg DEVICE=cu126 -t diffusam:cuda .`. Running it needs no network, and no user but a normal one.
FROM python:3.11-slim

# cpu, or a CUDA version for which PyTorch has wheels, such as cu126; the wheels bring CUDA, the host its driver alone
ARG DEVICE=cpu

# PyTorch first, and from PyTorch's own index: it is the largest part and changes least
RUN pip install --no-cache-dir "torch>=2.8" "torchvision>=0.23" \
        --index-url "https://download.pytorch.org/whl/${DEVICE}"

WORKDIR /opt/diffusam
COPY pyproject.toml README.md LICENSE ./
COPY diffusam diffusam
COPY benchmarks benchmarks
COPY bundle bundle
# -e, so that the bundle is used where it lies, with its configs/, models/ and scripts/; compiled here, since the user
# cannot write beside the scripts and would compile them at every start
RUN pip install --no-cache-dir -e . \
    && python -m compileall -q diffusam benchmarks bundle/scripts \
    && useradd --create-home --uid 1000 diffusam \
    && mkdir /data && chown diffusam:diffusam /data

USER 1000
# nothing is asked of a network; libraries keep what they cache where any user may write, also one given by --user
ENV HF_HUB_OFFLINE=1 MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["diffusam"]
CMD ["-h"]
