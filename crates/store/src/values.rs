//! Values to bind and rows to read, for both databases at once.
//!
//! A tuple of values binds to SQLite and to PostgreSQL alike; a row is any `#[derive(sqlx::FromRow)]` or
//! tuple. A type that only one of the databases knows is refused by the compiler.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Encode, FromRow, Postgres, Sqlite, Type};

/// One value that both databases take. (An `Option` must own what it holds: `Option<String>`, not `Option<&str>`.)
pub trait Value:
    for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> + Send
{
}
impl<T> Value for T where
    T: for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> + Send
{
}

/// The values of one statement, or of one row: a tuple of up to twenty [`Value`]s.
pub trait Values: Send {
    /// How many there are.
    const COUNT: usize;
    /// Binds them for SQLite.
    fn add_to_sqlite(self, arguments: &mut SqliteArguments) -> Result<(), BoxDynError>;
    /// Binds them for PostgreSQL.
    fn add_to_postgres(self, arguments: &mut PgArguments) -> Result<(), BoxDynError>;
}

/// A row that both databases can return.
pub trait Record: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T> Record for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl Values for () {
    const COUNT: usize = 0;

    fn add_to_sqlite(self, _: &mut SqliteArguments) -> Result<(), BoxDynError> {
        Ok(())
    }

    fn add_to_postgres(self, _: &mut PgArguments) -> Result<(), BoxDynError> {
        Ok(())
    }
}

macro_rules! values {
    ($($name:ident)+) => {
        impl<$($name: Value),+> Values for ($($name,)+) {
            const COUNT: usize = [$(stringify!($name)),+].len();

            fn add_to_sqlite(self, arguments: &mut SqliteArguments) -> Result<(), BoxDynError> {
                #[expect(non_snake_case, reason = "one name for the type and its value keeps the macro short")]
                let ($($name,)+) = self;
                $(Arguments::add(arguments, $name)?;)+
                Ok(())
            }

            fn add_to_postgres(self, arguments: &mut PgArguments) -> Result<(), BoxDynError> {
                #[expect(non_snake_case, reason = "one name for the type and its value keeps the macro short")]
                let ($($name,)+) = self;
                $(Arguments::add(arguments, $name)?;)+
                Ok(())
            }
        }
    };
}

macro_rules! values_up_to {
    ($first:ident) => { values! { $first } };
    ($first:ident $($rest:ident)+) => { values_up_to! { $($rest)+ } values! { $first $($rest)+ } };
}

values_up_to! { A B C D E F G H I J K L M N O P Q R S T }
