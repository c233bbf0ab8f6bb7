# docker build -f docker/cpu.Dockerfile -t diffstyler:cpu .
# docker run --rm -v "$PWD:/work" diffstyler:cpu demo --output_dir demo
FROM python:3.12-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/work/.cache/huggingface
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.8" "torchvision>=0.23"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY diffstyler diffstyler
RUN pip install . && useradd --create-home --uid 1000 painter
USER 1000
WORKDIR /work
ENTRYPOINT ["diffstyler"]
