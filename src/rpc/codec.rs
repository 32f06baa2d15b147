//! The protobuf codec, with the caller's mistakes told as such.
//!
//! The stock codec answers a request that does not decode (a `string` that is not UTF-8, a truncated message) with
//! INTERNAL, which blames the server and invites retries. It is the caller's fault, so it is INVALID_ARGUMENT here.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstEncoder};

/// Encodes `T` and decodes `U`.
#[derive(Clone, Copy, Debug)]
pub struct StrictCodec<T, U> {
    types: PhantomData<(T, U)>,
}

/// Decodes `U`.
#[derive(Debug)]
pub struct StrictDecoder<U> {
    inner: tonic_prost::ProstDecoder<U>,
}

impl<T, U> Default for StrictCodec<T, U> {
    fn default() -> Self {
        Self { types: PhantomData }
    }
}

impl<T, U> Codec for StrictCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = StrictDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        StrictDecoder { inner: ProstCodec::<T, U>::default().decoder() }
    }
}

impl<U: Message + Default> Decoder for StrictDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        self.inner.decode(buffer).map_err(|status| {
            if status.code() == Code::Internal {
                Status::invalid_argument(format!("the message does not decode: {}", status.message()))
            } else {
                status
            }
        })
    }
}
