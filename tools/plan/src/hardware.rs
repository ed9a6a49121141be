//! Devices and the links between them: figures from vendors' data sheets, without sparsity.

/// Number format of weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// 16-bit brain floats.
    Bf16,
    /// 8-bit floats with one scale per tensor or channel.
    Fp8,
    /// 4-bit floats with an 8-bit scale for every 16 of them.
    Nvfp4,
    /// 4-bit floats with an 8-bit exponent for every 32 of them.
    Mxfp4,
}

impl WeightFormat {
    /// Bytes of one weight, with its share of the scales.
    pub fn bytes(self) -> f64 {
        match self {
            WeightFormat::Bf16 => 2.0,
            WeightFormat::Fp8 => 1.0,
            WeightFormat::Nvfp4 => 4.5 / 8.0,
            WeightFormat::Mxfp4 => 4.25 / 8.0,
        }
    }
}

/// A device: what one of it computes, reads and holds, and how fast it talks to others.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Name on the command line.
    pub name: &'static str,
    /// Dense FLOP/s in bf16.
    pub bf16: f64,
    /// Dense FLOP/s in fp8; that of bf16 where the device has none.
    pub fp8: f64,
    /// Dense FLOP/s in fp4; that of bf16 where the device has none.
    pub fp4: f64,
    /// Memory bandwidth in bytes/s.
    pub memory_rate: f64,
    /// Memory in bytes.
    pub memory: f64,
    /// Bytes/s in one direction to devices of the same node.
    pub node_link: f64,
    /// Bytes/s in one direction to devices of other nodes.
    pub network_link: f64,
    /// Devices in a node.
    pub per_node: usize,
}

impl Device {
    /// FLOP/s of products with weights in this format. Formats that the device cannot compute with are converted to bf16.
    pub fn flops(&self, format: WeightFormat) -> f64 {
        match format {
            WeightFormat::Bf16 => self.bf16,
            WeightFormat::Fp8 => self.fp8,
            WeightFormat::Nvfp4 => self.fp4,
            // Activations stay in 8 bits where the device multiplies those by 4 bits, otherwise in 16.
            WeightFormat::Mxfp4 if self.fp4 > self.bf16 => self.fp8,
            WeightFormat::Mxfp4 => self.bf16,
        }
    }
}

const TERA: f64 = 1e12;
const GIGA: f64 = 1e9;

/// The devices known by name.
pub const DEVICES: &[Device] = &[
    // NVIDIA A100 80GB SXM data sheet; NVLink 3; one 200 Gb/s port per GPU as in DGX A100.
    Device {
        name: "a100",
        bf16: 312.0 * TERA,
        fp8: 312.0 * TERA,
        fp4: 312.0 * TERA,
        memory_rate: 2039.0 * GIGA,
        memory: 80.0 * GIGA,
        node_link: 300.0 * GIGA,
        network_link: 25.0 * GIGA,
        per_node: 8,
    },
    // NVIDIA L40S data sheet; PCIe 4.0 x16; one 200 Gb/s port per GPU assumed.
    Device {
        name: "l40s",
        bf16: 362.0 * TERA,
        fp8: 733.0 * TERA,
        fp4: 362.0 * TERA,
        memory_rate: 864.0 * GIGA,
        memory: 48.0 * GIGA,
        node_link: 32.0 * GIGA,
        network_link: 25.0 * GIGA,
        per_node: 8,
    },
    // NVIDIA H100 SXM data sheet; NVLink 4; one 400 Gb/s port per GPU as in DGX H100.
    Device {
        name: "h100",
        bf16: 989.0 * TERA,
        fp8: 1979.0 * TERA,
        fp4: 989.0 * TERA,
        memory_rate: 3350.0 * GIGA,
        memory: 80.0 * GIGA,
        node_link: 450.0 * GIGA,
        network_link: 50.0 * GIGA,
        per_node: 8,
    },
    // NVIDIA H200 SXM data sheet; NVLink 4; one 400 Gb/s port per GPU as in DGX H200.
    Device {
        name: "h200",
        bf16: 989.0 * TERA,
        fp8: 1979.0 * TERA,
        fp4: 989.0 * TERA,
        memory_rate: 4800.0 * GIGA,
        memory: 141.0 * GIGA,
        node_link: 450.0 * GIGA,
        network_link: 50.0 * GIGA,
        per_node: 8,
    },
    // NVIDIA DGX B200 data sheet, an eighth of the system; NVLink 5; one 400 Gb/s port per GPU.
    Device {
        name: "b200",
        bf16: 2250.0 * TERA,
        fp8: 4500.0 * TERA,
        fp4: 9000.0 * TERA,
        memory_rate: 8000.0 * GIGA,
        memory: 180.0 * GIGA,
        node_link: 900.0 * GIGA,
        network_link: 50.0 * GIGA,
        per_node: 8,
    },
    // Two cores of an AMD EPYC (AVX-512 BF16) in a virtual machine: products and reads as measured.
    Device {
        name: "epyc-2",
        bf16: 0.46 * TERA,
        fp8: 0.46 * TERA,
        fp4: 0.46 * TERA,
        memory_rate: 42.0 * GIGA,
        memory: 16.0 * GIGA,
        node_link: 5.0 * GIGA,
        network_link: 1.25 * GIGA,
        per_node: 1,
    },
];

/// The device with this name.
pub fn device(name: &str) -> Result<Device, String> {
    DEVICES.iter().find(|device| device.name == name).cloned().ok_or_else(|| {
        let known: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
        format!("device {name:?}: not known; known are {}", known.join(", "))
    })
}
